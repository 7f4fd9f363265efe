// InfoNCE streamed over the keys: loss and gradient in one pass, no [N, K] tensor.
//
// A tile of keys at a time: logits by one matrix product, then, while the tile is in cache, one pass per row for the
// running maximum, the rank, the weights e^(s - max) and their sum; then the weights times the same keys by the second
// product. That is attention with keys = values = queue, and the row's gradient: (sum_j p_j k_j - k_+) / temperature.
// The positive stays out of the running sums, so that a loss near 0 and its gradient keep their relative precision.
#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "common/aten.h"
#include "common/checks.h"
#include "common/library.h"
#include "cpu/vector.h"

namespace maskco {
namespace {

constexpr int64_t kRows = 256;   // queries of one tile
constexpr int64_t kKeys = 1024;  // keys of one tile: 1 MiB of float32 logits, which stay in the second-level cache
constexpr int64_t kGrain = 16;   // least rows worth a thread
constexpr int kLanes = 16;       // independent partial results, so that sums and maxima vectorise

// Running state of one query.
template <class T>
struct Row {
  T max;  // of the positive's logit and all negatives' so far
  T sum;  // of e^(s - max) over the negatives
  T positive_logit;
  int64_t rank;  // negatives with a larger logit than the positive's
};

// Turns logits[n] into weights e^(s - max) in place; returns the factor by which earlier sums shrink.
template <class T>
MASKCO_INLINE T absorb(T* logits, int64_t n, Row<T>& row) {
  T max_lane[kLanes], sum_lane[kLanes] = {};
  int32_t rank_lane[kLanes] = {};
  for (int l = 0; l < kLanes; l++) max_lane[l] = row.max;
  const int64_t full = n / kLanes * kLanes;
  for (int64_t j = 0; j < full; j += kLanes)
    for (int l = 0; l < kLanes; l++) {
      const T s = logits[j + l];
      max_lane[l] = s > max_lane[l] ? s : max_lane[l];
      rank_lane[l] += s > row.positive_logit;
    }
  for (int64_t j = full; j < n; j++) {
    max_lane[0] = logits[j] > max_lane[0] ? logits[j] : max_lane[0];
    rank_lane[0] += logits[j] > row.positive_logit;
  }
  T max = max_lane[0];
  for (int l = 0; l < kLanes; l++) {
    max = max_lane[l] > max ? max_lane[l] : max;
    row.rank += rank_lane[l];
  }
  for (int64_t j = 0; j < full; j += kLanes)
    for (int l = 0; l < kLanes; l++) {
      const T w = fast_exp(logits[j + l] - max);
      logits[j + l] = w;
      sum_lane[l] += w;
    }
  for (int64_t j = full; j < n; j++) sum_lane[0] += logits[j] = fast_exp(logits[j] - max);
  T sum = 0;
  for (int l = 0; l < kLanes; l++) sum += sum_lane[l];
  const T shrink = max == row.max ? T(1) : std::exp(row.max - max);
  row.max = max;
  row.sum = row.sum * shrink + sum;
  return shrink;
}

// weights[n] = e^(s - lse) * scale, from logits in place: the recompute pass of the backward
template <class T>
MASKCO_INLINE void probabilities(T* logits, int64_t n, T lse, T scale) {
  for (int64_t j = 0; j < n; j++) logits[j] = fast_exp(logits[j] - lse) * scale;
}

// (target_clones cannot be put on templates)
MASKCO_CLONES float absorb_row(float* s, int64_t n, Row<float>& row) { return absorb(s, n, row); }
MASKCO_CLONES double absorb_row(double* s, int64_t n, Row<double>& row) { return absorb(s, n, row); }
MASKCO_CLONES void probabilities_row(float* s, int64_t n, float lse, float scale) { probabilities(s, n, lse, scale); }
MASKCO_CLONES void probabilities_row(double* s, int64_t n, double lse, double scale) {
  probabilities(s, n, lse, scale);
}

template <class T>
void add(T* sums, const T* part, int64_t n) {
  for (int64_t x = 0; x < n; x++) sums[x] += part[x];
}

template <class T>
constexpr ScalarType scalar_type_of = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

// Keys that all queries share: which of them are a query's negatives.
struct Keys {
  Tensor rows;         // [K, C], any dtype and strides
  int64_t count;       // the first `count` rows hold keys
  const int64_t* ids;  // [K] or null
  bool own_excluded;   // in-batch: key i is query i's positive
};

int64_t valid_count(const std::optional<Tensor>& valid, int64_t size) {
  if (!valid) return size;
  const int64_t count = *static_cast<const int64_t*>(valid->data_ptr());
  STD_TORCH_CHECK(0 <= count && count <= size, "valid must lie between 0 and the queue's ", size, " rows, got ", count);
  return count;
}

const int64_t* id_pointer(const std::optional<Tensor>& ids) {
  return ids ? static_cast<const int64_t*>(ids->data_ptr()) : nullptr;
}

template <class T>
T temperature_value(double temperature, const std::optional<Tensor>& tensor) {
  return tensor ? *static_cast<const T*>(tensor->data_ptr()) : static_cast<T>(temperature);
}

// a contiguous copy in T, or the tensor itself where it is one already
Tensor as_contiguous(const Tensor& t, ScalarType dtype) {
  return torch::stable::contiguous(t.scalar_type() == dtype ? t : torch::stable::to(t, dtype));
}

// Keys that are not a query's negatives get the logit -inf.
template <class T>
void exclude(T* logits, int64_t row, int64_t first_key, int64_t n, const Keys& keys, const int64_t* query_ids) {
  constexpr T none = -std::numeric_limits<T>::infinity();
  if (query_ids && keys.ids)
    for (int64_t j = 0; j < n; j++)
      if (keys.ids[first_key + j] == query_ids[row]) logits[j] = none;
  if (keys.own_excluded && first_key <= row && row < first_key + n) logits[row - first_key] = none;
}

// Calls body(first row, logits [rows, n], first key, key tile [n, C] in T) for every tile of logits.
template <class T, class Body>
void for_each_tile(const Tensor& scaled_query, const Keys& keys, const Body& body) {
  const int64_t n_queries = scaled_query.size(0);
  if (n_queries == 0) return;
  Tensor workspace = torch::stable::new_empty(
      scaled_query, {std::min(n_queries, kRows) * std::max<int64_t>(1, std::min(keys.count, kKeys))},
      scalar_type_of<T>);
  for (int64_t k0 = 0; k0 < keys.count; k0 += kKeys) {
    const int64_t n = std::min(kKeys, keys.count - k0);
    Tensor tile = narrow(keys.rows, 0, k0, n);
    if (tile.scalar_type() != scalar_type_of<T>) tile = torch::stable::to(tile, scalar_type_of<T>);
    const Tensor tile_t = torch::stable::transpose(tile, 0, 1);
    for (int64_t i0 = 0; i0 < n_queries; i0 += kRows) {
      const int64_t m = std::min(kRows, n_queries - i0);
      Tensor logits = torch::stable::view(narrow(workspace, 0, 0, m * n), {m, n});
      mm_out(logits, narrow(scaled_query, 0, i0, m), tile_t);
      body(i0, logits, k0, tile);
    }
  }
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& query_in, const Tensor& positive_in, const std::optional<Tensor>& queue,
    const std::optional<Tensor>& local_negatives, bool in_batch, const std::optional<Tensor>& query_ids_in,
    const std::optional<Tensor>& queue_ids, const std::optional<Tensor>& valid, double temperature,
    const std::optional<Tensor>& temperature_tensor, bool need_grad) {
  constexpr ScalarType dtype = scalar_type_of<T>;
  const Tensor query = as_contiguous(query_in, dtype), positive = as_contiguous(positive_in, dtype);
  const int64_t n = query.size(0), c = query.size(1);
  const T inverse = T(1) / temperature_value<T>(temperature, temperature_tensor);
  const int64_t* query_ids = id_pointer(query_ids_in);

  Tensor loss = torch::stable::new_empty(query, {n}), lse = torch::stable::new_empty(query, {n});
  Tensor positive_logit = torch::stable::new_empty(query, {n});
  Tensor rank = torch::stable::new_empty(query, {n}, ScalarType::Long);
  // becomes the weighted sum of the negatives, and in the end the gradient
  Tensor grad_query = torch::stable::new_empty(query, {need_grad ? n : 0, c});
  Tensor scaled_query = torch::stable::new_empty(query, {n, c});  // logits then come out of the product divided by tau
  std::vector<Row<T>> rows(n);

  const T* q = static_cast<const T*>(query.data_ptr());
  const T* p = static_cast<const T*>(positive.data_ptr());
  T* sq = static_cast<T*>(scaled_query.data_ptr());
  T* acc = need_grad ? static_cast<T*>(grad_query.data_ptr()) : nullptr;

  std::optional<Tensor> local;
  if (local_negatives) local = as_contiguous(*local_negatives, dtype);
  const int64_t m_local = local ? local->size(1) : 0;
  const T* local_keys = local ? static_cast<const T*>(local->data_ptr()) : nullptr;  // [N, M, C]

  torch::stable::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<T> logits(m_local);
    for (int64_t i = begin; i < end; i++) {
      for (int64_t x = 0; x < c; x++) sq[i * c + x] = q[i * c + x] * inverse;
      T dot = 0;
      for (int64_t x = 0; x < c; x++) dot += sq[i * c + x] * p[i * c + x];
      rows[i] = {dot, T(0), dot, 0};
      for (int64_t j = 0; j < m_local; j++) {
        const T* key = local_keys + (i * m_local + j) * c;
        T s = 0;
        for (int64_t x = 0; x < c; x++) s += sq[i * c + x] * key[x];
        logits[j] = s;
      }
      absorb_row(logits.data(), m_local, rows[i]);
      if (!acc) continue;
      std::fill_n(acc + i * c, c, T(0));
      for (int64_t j = 0; j < m_local; j++)
        for (int64_t x = 0; x < c; x++) acc[i * c + x] += logits[j] * local_keys[(i * m_local + j) * c + x];
    }
  });

  auto stream = [&](const Keys& keys) {
    for_each_tile<T>(scaled_query, keys, [&](int64_t i0, Tensor& logits, int64_t k0, const Tensor& tile) {
      const int64_t width = logits.size(1);
      T* s = static_cast<T*>(logits.data_ptr());
      torch::stable::parallel_for(0, logits.size(0), kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
          exclude(s + i * width, i0 + i, k0, width, keys, query_ids);
          const T shrink = absorb_row(s + i * width, width, rows[i0 + i]);
          if (acc && shrink != T(1))
            for (int64_t x = 0; x < c; x++) acc[(i0 + i) * c + x] *= shrink;
        }
      });
      if (!acc) return;
      const Tensor part = mm(logits, tile);  // (the stable ABI has no way to pass addmm's scalars)
      add(acc + i0 * c, static_cast<const T*>(part.data_ptr()), part.numel());
    });
  };
  if (queue) stream({*queue, valid_count(valid, queue->size(0)), id_pointer(queue_ids), false});
  if (in_batch) stream({positive, n, query_ids, true});

  T* out_loss = static_cast<T*>(loss.data_ptr());
  T* out_lse = static_cast<T*>(lse.data_ptr());
  T* out_logit = static_cast<T*>(positive_logit.data_ptr());
  int64_t* out_rank = static_cast<int64_t*>(rank.data_ptr());
  torch::stable::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const Row<T>& row = rows[i];
      const T own = std::exp(row.positive_logit - row.max), total = own + row.sum;
      const T behind = row.max - row.positive_logit;  // NaN, and so the loss, where the positive's logit is infinite
      out_loss[i] = behind + (behind == 0 ? std::log1p(row.sum) : std::log(total));
      out_lse[i] = row.positive_logit + out_loss[i];
      out_logit[i] = row.positive_logit;
      out_rank[i] = row.rank;
      if (!acc) continue;
      const T scale = inverse / total, share = row.sum / total;  // share = 1 - p_+
      for (int64_t x = 0; x < c; x++) acc[i * c + x] = acc[i * c + x] * scale - share * inverse * p[i * c + x];
    }
  });
  return {loss, lse, positive_logit, rank, grad_query};
}

template <class T>
Tensor backward_keys(const Tensor& grad_loss_in, const Tensor& lse_in, const Tensor& query_in, const Tensor& keys_in,
                     bool in_batch, const std::optional<Tensor>& query_ids_in, const std::optional<Tensor>& key_ids,
                     const std::optional<Tensor>& valid, double temperature,
                     const std::optional<Tensor>& temperature_tensor) {
  constexpr ScalarType dtype = scalar_type_of<T>;
  const Tensor query = as_contiguous(query_in, dtype);
  const Tensor grad_loss = as_contiguous(grad_loss_in, dtype), lse = as_contiguous(lse_in, dtype);
  const int64_t n = query.size(0), c = query.size(1);
  const T inverse = T(1) / temperature_value<T>(temperature, temperature_tensor);
  const int64_t* query_ids = id_pointer(query_ids_in);
  const T* g = static_cast<const T*>(grad_loss.data_ptr());
  const T* row_lse = static_cast<const T*>(lse.data_ptr());

  Tensor scaled_query = torch::stable::new_empty(query, {n, c});
  const T* q = static_cast<const T*>(query.data_ptr());
  T* sq = static_cast<T*>(scaled_query.data_ptr());
  for (int64_t x = 0; x < n * c; x++) sq[x] = q[x] * inverse;

  Tensor grad_keys = torch::stable::new_zeros(query, {keys_in.size(0), c});
  const Keys keys{keys_in, valid_count(valid, keys_in.size(0)), id_pointer(key_ids), in_batch};
  for_each_tile<T>(scaled_query, keys, [&](int64_t i0, Tensor& logits, int64_t k0, const Tensor&) {
    const int64_t width = logits.size(1);
    T* s = static_cast<T*>(logits.data_ptr());
    torch::stable::parallel_for(0, logits.size(0), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        exclude(s + i * width, i0 + i, k0, width, keys, query_ids);
        probabilities_row(s + i * width, width, row_lse[i0 + i], g[i0 + i]);
      }
    });
    const Tensor part = mm(torch::stable::transpose(logits, 0, 1), narrow(scaled_query, 0, i0, logits.size(0)));
    add(static_cast<T*>(grad_keys.data_ptr()) + k0 * c, static_cast<const T*>(part.data_ptr()), part.numel());
  });
  return grad_keys.scalar_type() == keys_in.scalar_type() ? grad_keys
                                                          : torch::stable::to(grad_keys, keys_in.scalar_type());
}

void check_ids(const std::optional<Tensor>& ids, int64_t size, const char* name) {
  if (!ids) return;
  check_dim(*ids, 1, name), check_size(*ids, 0, size, name), check_dtype(*ids, ScalarType::Long, name);
  STD_TORCH_CHECK(ids->is_contiguous(), name, " must be contiguous");
}
void check_scalars(const std::optional<Tensor>& valid, const std::optional<Tensor>& temperature, const Tensor& query) {
  if (valid) {
    check_dtype(*valid, ScalarType::Long, "valid");
    STD_TORCH_CHECK(valid->numel() == 1, "valid must have one element");
  }
  if (temperature) {
    check_dtype(*temperature, accumulation_type(query), "temperature_tensor");
    STD_TORCH_CHECK(temperature->numel() == 1, "temperature_tensor must have one element");
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> info_nce_fwd(
    const Tensor& query,                           // [N, C]
    const Tensor& positive,                        // [N, C]
    const std::optional<Tensor>& queue,            // [K, C], any strides
    const std::optional<Tensor>& local_negatives,  // [N, M, C]
    bool in_batch,
    const std::optional<Tensor>& query_ids,  // [N] int64
    const std::optional<Tensor>& queue_ids,  // [K] int64
    const std::optional<Tensor>& valid,      // one int64
    double temperature,
    const std::optional<Tensor>&
        temperature_tensor,  // one float32 (float64 with float64 queries); replaces temperature
    bool need_grad) {
  check_dim(query, 2, "query"), check_floating(query, "query");
  const int64_t n = query.size(0), c = query.size(1);
  check_dim(positive, 2, "positive"), check_size(positive, 0, n, "positive"), check_size(positive, 1, c, "positive");
  if (queue) check_dim(*queue, 2, "queue"), check_size(*queue, 1, c, "queue"), check_floating(*queue, "queue");
  if (local_negatives) {
    check_dim(*local_negatives, 3, "local_negatives"), check_size(*local_negatives, 0, n, "local_negatives");
    check_size(*local_negatives, 2, c, "local_negatives");
  }
  check_ids(query_ids, n, "query_ids"), check_ids(queue_ids, queue ? queue->size(0) : 0, "queue_ids");
  check_scalars(valid, temperature_tensor, query);
  auto run = accumulation_type(query) == ScalarType::Double ? &forward<double> : &forward<float>;
  return run(query, positive, queue, local_negatives, in_batch, query_ids, queue_ids, valid, temperature,
             temperature_tensor, need_grad);
}

Tensor info_nce_bwd_keys(const Tensor& grad_loss,  // [N]
                         const Tensor& lse,        // [N]
                         const Tensor& query,      // [N, C]
                         const Tensor& keys,       // [K, C]
                         bool in_batch,            // key i is query i's own positive, and no negative of it
                         const std::optional<Tensor>& query_ids,  // [N] int64
                         const std::optional<Tensor>& key_ids,    // [K] int64
                         const std::optional<Tensor>& valid,      // one int64
                         double temperature, const std::optional<Tensor>& temperature_tensor) {
  check_dim(query, 2, "query"), check_floating(query, "query");
  check_dim(grad_loss, 1, "grad_loss"), check_size(grad_loss, 0, query.size(0), "grad_loss");
  check_dim(lse, 1, "lse"), check_size(lse, 0, query.size(0), "lse");
  check_dim(keys, 2, "keys"), check_size(keys, 1, query.size(1), "keys"), check_floating(keys, "keys");
  check_ids(query_ids, query.size(0), "query_ids"), check_ids(key_ids, keys.size(0), "key_ids");
  check_scalars(valid, temperature_tensor, query);
  auto run = accumulation_type(query) == ScalarType::Double ? &backward_keys<double> : &backward_keys<float>;
  return run(grad_loss, lse, query, keys, in_batch, query_ids, key_ids, valid, temperature, temperature_tensor);
}

}  // namespace
}  // namespace maskco

MASKCO_LIBRARY_IMPL(MASKCO_NAMESPACE, CPU, m) {
  m.impl("info_nce_fwd", TORCH_BOX(&maskco::info_nce_fwd));
  m.impl("info_nce_bwd_keys", TORCH_BOX(&maskco::info_nce_bwd_keys));
}
