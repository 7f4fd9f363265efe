// Tensor-core products and the copies that feed them, as PTX: ldmatrix, mma.sync and cp.async of compute
// capability 8.0.
//
// Layout of mma.sync m16n8k*, for lane = 4 g + t: of A [16, k] a lane holds rows g and g + 8, of B [k, 8] column g, and
// of the sums [16, 8] rows g and g + 8, columns 2 t and 2 t + 1. A step along k is 32 bytes in every type: 16 elements
// of 16 bits or 8 of 32. So ldmatrix, which moves 8 x 8 matrices of 16 bits, loads either kind alike.
#pragma once
#include <cstdint>
#include <type_traits>

#include "cuda/common/convert.cuh"

namespace maskco {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// kBytes from global to shared memory, both aligned to it; where not `inside`, zeros, and nothing is read.
template <int kBytes>
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool inside) {
  const int size = inside ? kBytes : 0;
  if constexpr (kBytes == 16) {  // .cg: past the first-level cache
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(size) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes), "r"(size)
                 : "memory");
  }
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// until at most kPending of the groups committed last are under way
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of 16 bits; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&m)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&m)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ uint32_t load_shared(uint32_t address) {
  uint32_t x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
  return x;
}

__device__ __forceinline__ uint32_t round_to_tf32(uint32_t x) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(x)));
  return rounded;
}

#define MASKCO_MMA(shape_and_types, sums, a, b)                                                                       \
  asm volatile("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"((sums)[0]), "+f"((sums)[1]), "+f"((sums)[2]), "+f"((sums)[3])                                   \
               : "r"((a)[0]), "r"((a)[1]), "r"((a)[2]), "r"((a)[3]), "r"((b)[0]), "r"((b)[1]))

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
      MASKCO_MMA("m16n8k16.row.col.f32.f16.f16.f32", sums, a.x, b.x);
    } else {
      MASKCO_MMA("m16n8k16.row.col.f32.bf16.bf16.f32", sums, a.x, b.x);
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

// float32 factors become TF32, with 10 bits of mantissa. kTerms = 3 splits each into a TF32 and the rest, and leaves
// out only the product of the two rests: nearly all of float32's 23 bits. An infinite factor's rest is NaN, and so are
// the terms with it: where infinities matter, add the `high` term and the `rest` terms to sums of their own.
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
      } else {  // rounds as above in fewer instructions, where a NaN may get lost, but not in the rest
        made.high[i] = (raw[i] + 0x1000) & 0xffffe000;
        made.low[i] = __float_as_uint(__uint_as_float(raw[i]) - __uint_as_float(made.high[i])) & 0xffffe000;
      }
    }
    return made;
  }
  __device__ __forceinline__ static void add_high(float (&sums)[4], const Operand<4>& a, const Operand<2>& b) {
    MASKCO_MMA("m16n8k8.row.col.f32.tf32.tf32.f32", sums, a.high, b.high);
  }
  // `kSwapped`: rounded as add_rest(sums, b, a) without it
  template <bool kSwapped = false>
  __device__ __forceinline__ static void add_rest(float (&sums)[4], const Operand<4>& a, const Operand<2>& b) {
    if constexpr (kSwapped) MASKCO_MMA("m16n8k8.row.col.f32.tf32.tf32.f32", sums, a.high, b.low);
    MASKCO_MMA("m16n8k8.row.col.f32.tf32.tf32.f32", sums, a.low, b.high);
    if constexpr (!kSwapped) MASKCO_MMA("m16n8k8.row.col.f32.tf32.tf32.f32", sums, a.high, b.low);
  }
  __device__ __forceinline__ static void add(float (&sums)[4], const Operand<4>& a, const Operand<2>& b) {
    if constexpr (kTerms == 3) add_rest(sums, a, b);  // small terms first
    add_high(sums, a, b);
  }
};

}  // namespace maskco
