// Element types: the types of sums (double for double, else float), conversions, and packs of up to 16 bytes.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace maskco {

template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename T>
using accumulator_t = typename Accumulator<T>::type;

template <typename T>
inline constexpr bool is_half = false;
template <>
inline constexpr bool is_half<__half> = true;
template <>
inline constexpr bool is_half<__nv_bfloat16> = true;

// (the half types convert to and from float only, which rounds double twice, as torch does)
template <typename To, typename From>
__device__ __forceinline__ To convert(From x) {
  if constexpr (is_half<From> || is_half<To>) {
    return static_cast<To>(static_cast<float>(x));
  } else {
    return static_cast<To>(x);
  }
}

// The elements that a thread reads or writes at once.
template <typename S, int kCount>
struct alignas(sizeof(S) * kCount) Pack {
  S value[kCount];
};

}  // namespace maskco
