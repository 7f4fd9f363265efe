// The tensor-core products that kernels use: of 16-bit elements, and of float32 by one or three products of TF32.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/common/ptx.cuh"

namespace maskco {

// Both products below have
//   element           the type of the factors in memory
//   Operand<n>        a lane's part of a factor, n registers: 4 of a, 2 of b
//   operand(raw)      makes one of the registers as loaded
//   add(sums, a, b)   sums [16, 8] += a [16, k] b [k, 8]
//   kTerms            how many products of low precision that takes

template <typename T>
struct HalfProduct {  // k = 16
  using element = T;
  static constexpr int kTerms = 1;
  template <int n>
  struct Operand {
    uint32_t x[n];
  };
  template <int n>
  __device__ __forceinline__ static Operand<n> operand(const uint32_t (&raw)[n]) {
    Operand<n> made;
    for (int i = 0; i < n; i++) made.x[i] = raw[i];
    return made;
  }
  __device__ __forceinline__ static void add(float (&sums)[4], const Operand<4>& a, const Operand<2>& b) {
    if constexpr (std::is_same_v<T, __half>) {
      multiply_add_float16(sums, a.x, b.x);
    } else {
      multiply_add_bfloat16(sums, a.x, b.x);
    }
  }
  __device__ __forceinline__ static uint32_t pack(float low, float high) {
    if constexpr (std::is_same_v<T, __half>) {
      const __half2 pair = __floats2half2_rn(low, high);
      return reinterpret_cast<const uint32_t&>(pair);
    } else {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
      return reinterpret_cast<const uint32_t&>(pair);
    }
  }
};

// float32 factors become TF32, with 10 bits of mantissa. kTerms = 3 splits each factor into a TF32 and the rest. It
// leaves out only the product of two rests, which keeps nearly all of float32's 23 bits. An infinite factor's rest is
// NaN, and so are the terms with it. If infinities matter, add the `high` term and the `rest` terms to separate sums.
template <int kTerms_>
struct Tf32Product {  // k = 8
  using element = float;
  static constexpr int kTerms = kTerms_;
  template <int n>
  struct Operand {
    uint32_t high[n], low[kTerms == 3 ? n : 1];
  };
  template <int n>
  __device__ __forceinline__ static Operand<n> operand(const uint32_t (&raw)[n]) {
    Operand<n> made;
    for (int i = 0; i < n; i++) {
      if constexpr (kTerms == 1) {
        made.high[i] = round_to_tf32(raw[i]);
      } else {  // rounds as above in fewer instructions; the TF32 may lose a NaN, but the rest keeps it
        made.high[i] = (raw[i] + 0x1000) & 0xffffe000;
        made.low[i] = __float_as_uint(__uint_as_float(raw[i]) - __uint_as_float(made.high[i])) & 0xffffe000;
      }
    }
    return made;
  }
  __device__ __forceinline__ static void add_high(float (&sums)[4], const Operand<4>& a, const Operand<2>& b) {
    multiply_add_tf32(sums, a.high, b.high);
  }
  // With `kSwapped` it rounds as add_rest(sums, b, a) does without it.
  template <bool kSwapped = false>
  __device__ __forceinline__ static void add_rest(float (&sums)[4], const Operand<4>& a, const Operand<2>& b) {
    if constexpr (kSwapped) multiply_add_tf32(sums, a.high, b.low);
    multiply_add_tf32(sums, a.low, b.high);
    if constexpr (!kSwapped) multiply_add_tf32(sums, a.high, b.low);
  }
  __device__ __forceinline__ static void add(float (&sums)[4], const Operand<4>& a, const Operand<2>& b) {
    if constexpr (kTerms == 3) add_rest(sums, a, b);  // small terms first
    add_high(sums, a, b);
  }
};

}  // namespace maskco
