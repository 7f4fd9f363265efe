// Features of both sides of all pairs for a sweep, and their gradients from it.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <memory>
#include <optional>
#include <type_traits>
#include <vector>

#include "common/aten.h"
#include "common/pair_losses.h"
#include "cpu/contrast/operands.h"

namespace maskco {

constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.69314718055994530942;

template <class T>
constexpr ScalarType scalar_type_of = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

// A contiguous tensor in T: the tensor itself if it is one already, else a copy.
template <class T>
Tensor as_contiguous(const Tensor& t) {
  constexpr ScalarType dtype = scalar_type_of<T>;
  return torch::stable::contiguous(t.scalar_type() == dtype ? t : torch::stable::to(t, dtype));
}

// How many items of `elements` elements are worth a thread.
inline int64_t grain(int64_t elements) { return 1 + (1 << 14) / (elements + 1); }

template <class T>
struct PairFeatures {
  Tensor query, keys;              // [N, C], [K, C]; contiguous, in T, or bfloat16 if kernels multiply pairs
  int64_t n, k, c, width, padded;  // C rounded up to a panel, N to a multiple of every panel
  int64_t first, all;              // the queries are a slice of `all`, from `first` on
  bool bfloat16;

  PairFeatures(const Tensor& query_, const Tensor& keys_, int64_t panel, int64_t depth)
      : n(query_.size(0)),
        k(keys_.size(0)),
        c(query_.size(1)),
        width(round_up(c, panel)),
        padded(round_up(n, 32)),
        first(0),
        all(n),
        bfloat16(depth == 2) {
    const auto prepared = [&](const Tensor& t) {
      return bfloat16 ? torch::stable::contiguous(t) : as_contiguous<T>(t);
    };
    const bool same = query_.data_ptr() == keys_.data_ptr() && n == k && query_.stride(0) == keys_.stride(0) &&
                      query_.stride(1) == keys_.stride(1);
    query = prepared(query_);
    keys = same ? query : prepared(keys_);
  }

  PairFeatures slice(int64_t start, int64_t length) const {
    PairFeatures part = *this;
    part.query = narrow(query, 0, start, length);
    part.n = length;
    part.padded = round_up(length, 32);
    part.first = start;
    return part;
  }

  // Calls f(query's row, keys' row) with pointers to the stored type.
  template <class F>
  auto rows(int64_t i, int64_t j, const F& f) const {
    if (bfloat16) return f(data<const c10::BFloat16>(query) + i * c, data<const c10::BFloat16>(keys) + j * c);
    return f(data<const T>(query) + i * c, data<const T>(keys) + j * c);
  }

  // query i · key j
  T dot(int64_t i, int64_t j) const {
    return rows(i, j, [&](const auto* a, const auto* b) {
      constexpr int64_t kBlock = 256;  // in blocks for precision, as in panel_logits
      T total = 0;
      for (int64_t first = 0; first < c; first += kBlock) {
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t x = first; x < std::min(c, first + kBlock); x++) sum += T(a[x]) * T(b[x]);
        total += sum;
      }
      return total;
    });
  }
};

// One side's gradient, added up from sums. They are in the result itself if it has their layout, else in a buffer.
template <class T>
class GradientSum {
 public:
  GradientSum(bool needed, const PairFeatures<T>& f, int64_t rows, ScalarType dtype)
      : rows_(needed ? rows : 0),
        c_(f.c),
        width_(f.width),
        result_(torch::stable::new_empty(f.query, {rows_, f.c}, dtype)) {}

  bool needed() const { return rows_ > 0; }
  // The sums to add to, [rows rounded up, width]. Null if the gradient is not needed.
  T* sums() {
    if (rows_ == 0 || sums_) return sums_;
    const int64_t padded = round_up(rows_, 32);
    if (result_.scalar_type() == scalar_type_of<T> && width_ == c_ && padded == rows_) {
      sums_ = data<T>(result_);
    } else {
      buffer_.reset(new T[padded * width_]);
      sums_ = buffer_.get();
    }
    torch::stable::parallel_for(0, padded, grain(width_), [&](int64_t begin, int64_t end) {
      std::fill(sums_ + begin * width_, sums_ + end * width_, T(0));
    });
    return sums_;
  }
  // The result to write to, without sums.
  const Tensor& whole() {
    written_ = true;
    return result_;
  }
  // The gradient in the requested dtype.
  Tensor result() {
    if (!written_) sums();
    if (!buffer_) return result_;
    const auto convert = [&](auto* to) {
      torch::stable::parallel_for(0, rows_, grain(c_), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) std::copy_n(sums_ + i * width_, c_, to + i * c_);
      });
    };
    switch (result_.scalar_type()) {
      case ScalarType::Double:
        convert(data<double>(result_));
        break;
      case ScalarType::Half:
        convert(data<c10::Half>(result_));
        break;
      case ScalarType::BFloat16:
        convert(data<c10::BFloat16>(result_));
        break;
      default:
        convert(data<float>(result_));
    }
    return result_;
  }

 private:
  int64_t rows_, c_, width_;
  Tensor result_;
  std::unique_ptr<T[]> buffer_;
  T* sums_ = nullptr;
  bool written_ = false;
};

// Ids in the form that a policy compares, [padded] each. For lanes of 32 bits they are split into two parts.
template <class T>
struct LaneIds {
  using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  std::vector<Integer> low, high;

  LaneIds(const std::optional<Tensor>& ids, int64_t padded) {
    if (!ids) return;
    const int64_t n = ids->size(0);
    const auto* from = data<const int64_t>(*ids);
    low.resize(padded);
    for (int64_t i = 0; i < n; i++) low[i] = static_cast<Integer>(from[i]);
    if (sizeof(T) == 8) return;
    high.resize(padded);
    for (int64_t i = 0; i < n; i++) high[i] = static_cast<Integer>(from[i] >> 32);
  }
};

inline const int64_t* id_pointer(const std::optional<Tensor>& ids) { return ids ? data<const int64_t>(*ids) : nullptr; }

template <class T>
T scalar_value(const ScaleArgument& scale) {
  if (!scale.tensor) return static_cast<T>(scale.number);
  const T in_tensor = *data<T>(*scale.tensor);
  return scale.number < 0 ? 1 / in_tensor : in_tensor;
}

// A logit in units of log 2, rounded as if it had been stored in natural units. So both passes use the same number.
template <class T>
T as_kept(T logit) {
  return logit * T(kLn2) * T(kLog2E);
}

// For each query, the logit (times the scale's sign) above which a key is too similar to be a negative.
template <class T>
std::vector<T> ceilings(std::optional<double> margin, const T* own_logit, int64_t size, T scale) {
  std::vector<T> out(margin ? size : 0);
  for (size_t i = 0; i < out.size(); i++)
    out[i] = (own_logit[i] + static_cast<T>(*margin) * scale) * (scale < 0 ? -1 : 1);
  return out;
}

// The loss, which is the natural logsumexp of all logits less the own logit, and their sum times 2^-max. Logits are in
// units of log 2. `sum` leaves out the own logit, so that a loss near 0 keeps its precision. If decoupled, no sum
// contains the own logit, and the loss without negatives is 0.
template <class T>
T cross_entropy(T own, T max, T sum, bool decoupled, T* total) {
  const T ln2 = T(kLn2), behind = (max - own) * ln2;  // NaN for an infinite own logit, and so is the loss
  if (decoupled) {
    *total = sum;
    return sum == 0 ? T(0) : behind + std::log(sum);
  }
  *total = std::exp(-behind) + sum;
  return behind + (behind == 0 ? std::log1p(sum) : std::log(*total));
}

// A tensor of zeros, in the dtype of sums.
template <class T>
Tensor filled(const Tensor& like, int64_t rows, int64_t columns) {
  const Tensor out = torch::stable::new_empty(like, {rows, columns}, scalar_type_of<T>);
  std::fill_n(data<T>(out), rows * columns, T(0));
  return out;
}

// The sum of values [N] times `factor`, as a tensor [].
template <class T>
Tensor sum_of(const Tensor& rows, double factor) {
  const Tensor out = torch::stable::new_empty(rows, {});
  double total = 0;
  for (int64_t i = 0; i < rows.size(0); i++) total += data<const T>(rows)[i];
  *data<T>(out) = static_cast<T>(total * factor);
  return out;
}

template <class T>
double total_of(const std::vector<T>& values) {
  double total = 0;
  for (T value : values) total += value;
  return total;
}

// The gradient [1] of the scale's tensor, from the sum of weights times logits in units of log 2. It is [0] if it is
// not needed.
template <class T>
Tensor scale_gradient(const Tensor& like, double along, T scale, double power, bool needed) {
  const Tensor out = torch::stable::new_empty(like, {needed ? 1 : 0}, scalar_type_of<T>);
  const double of_scale = along * kLn2 / (double(scale) * double(scale));
  if (needed) *data<T>(out) = static_cast<T>(power < 0 ? -along * kLn2 : of_scale);
  return out;
}

}  // namespace maskco
