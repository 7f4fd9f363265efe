// Vector types of the compilers (GCC and Clang), so that one source serves every instruction set. Also what loops over
// them need: forced inlining into the function that names the instruction set, and an exponential.
#pragma once
#include <cmath>
#include <cstdint>
#include <type_traits>

#define MASKCO_INLINE inline __attribute__((always_inline))

// AVX-512 can scale by powers of two. The model of AMX has vectors of 64 bytes on CPUs without AVX-512, and Clang
// refuses the instructions in functions whose target is set by attribute.
#if defined(__x86_64__) && !defined(__clang__) && !defined(MASKCO_AMX_MODEL)
#define MASKCO_VECTOR_SCALE
#endif

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
  // rest. NaN stays NaN. Below about -126 the result is 0, from 128 on it is inf.
  static MASKCO_INLINE void exp2(Vector& x) {
    if constexpr (sizeof(T) == 8) {
      for (int l = 0; l < kCount; l++) x[l] = std::exp2(x[l]);
#ifdef MASKCO_VECTOR_SCALE
    } else if constexpr (kBytes == 64) {
      const Vector smallest = Vector{} - 126.f;  // denormal results would be slow
      Vector whole;
      uint16_t kept;  // not less than the smallest, so NaN too
      asm("vrndscaleps $8, %1, %0" : "=v"(whole) : "v"(x));
      asm("vcmpps $5, %2, %1, %0" : "=Yk"(kept) : "v"(x), "v"(smallest));
      x -= whole;
      short_exp2(x);
      asm("vscalefps %1, %0, %0%{%2%}%{z%}" : "+v"(x) : "v"(whole), "Yk"(kept));
#endif
    } else {
      Vector clamped = x < -127.f ? Vector{} - 127.f : x;  // (a NaN falls through both comparisons)
      clamped = clamped > 128.f ? Vector{} + 128.f : clamped;
      constexpr float kRound = 12582912.f + 127.f;  // makes an integer of the low mantissa bits: the exponent's bits
      const Vector shifted = clamped + kRound;
      x = clamped - (shifted - kRound);
      short_exp2(x);
      x *= (Vector)((Mask)shifted << 23);
    }
  }

  // r becomes 2^r, for -1/2 <= r <= 1/2: minimax, relative error 9e-8.
  static MASKCO_INLINE void short_exp2(Vector& r) {
    Vector p = r * 1.32647e-3f + 9.67151e-3f;
    p = p * r + 5.550734e-2f;
    p = p * r + 2.4022242e-1f;
    p = p * r + 6.9314698e-1f;
    r = p * r + 1.f;
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
