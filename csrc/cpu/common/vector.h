// Vector types of the compilers (GCC and Clang), so that one source serves every instruction set. Also what loops over
// them need: forced inlining into the function that names the instruction set, and an exponential.
#pragma once
#include <cmath>
#include <cstdint>
#include <type_traits>

#define MASKCO_INLINE inline __attribute__((always_inline))

namespace maskco {

template <class T, int kBytes_>
struct Lanes {
  static constexpr int kBytes = kBytes_;
  using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  typedef T Vector __attribute__((vector_size(kBytes), aligned(alignof(T)), may_alias));
  typedef Integer Mask __attribute__((vector_size(kBytes), aligned(alignof(T)), may_alias));  // -1 where true
  static constexpr int kCount = kBytes / sizeof(T);

  static MASKCO_INLINE Vector& at(T* p) { return *reinterpret_cast<Vector*>(p); }
  static MASKCO_INLINE const Vector& at(const T* p) { return *reinterpret_cast<const Vector*>(p); }

  // x becomes 2^x within 2 ulp, for x up to about 0. Exponent bits make the power of two, and a polynomial makes the
  // rest (minimax on [-1/2, 1/2], relative error 9e-8). NaN stays NaN. Below -127 the result is 0, from 128 on it is
  // inf.
  static MASKCO_INLINE void exp2(Vector& x) {
    if constexpr (sizeof(T) == 8) {
      for (int l = 0; l < kCount; l++) x[l] = std::exp2(x[l]);
    } else {
      Vector clamped = x < -127.f ? Vector{} - 127.f : x;  // (a NaN falls through both comparisons)
      clamped = clamped > 128.f ? Vector{} + 128.f : clamped;
      const Vector shifted = clamped + 12582912.f;  // rounds to an integer in the low mantissa bits
      const Vector r = clamped - (shifted - 12582912.f);
      Vector p = r * 1.32647e-3f + 9.67151e-3f;
      p = p * r + 5.550734e-2f;
      p = p * r + 2.4022242e-1f;
      p = p * r + 6.9314698e-1f;
      p = p * r + 1.f;
      const Mask scale = ((Mask)shifted + 127) << 23;
      x = p * (Vector)scale;
    }
  }

  // u becomes log(1 + u) for 0 <= u <= 1, within 2 ulp even for the smallest u. It is the series of 2 atanh(u / (2 +
  // u)).
  static MASKCO_INLINE void log1p(Vector& u) {
    if constexpr (sizeof(T) == 8) {
      for (int l = 0; l < kCount; l++) u[l] = std::log1p(u[l]);
    } else {
      const Vector t = u / (u + 2.f), square = t * t;
      Vector p = square * (1.f / 13) + 1.f / 11;
      p = p * square + 1.f / 9;
      p = p * square + 1.f / 7;
      p = p * square + 1.f / 5;
      p = p * square + 1.f / 3;
      u = (t + t) * (p * square + 1.f);
    }
  }
};

}  // namespace maskco
