// PTX instructions of compute capability 8.0 as functions, without code of any one kernel.
#pragma once
#include <cstdint>

namespace maskco {

// threadIdx.x, read again each time. The compiler then keeps no value computed from it across a main loop, where
// registers are scarce.
__device__ __forceinline__ int thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- several elements at once into global memory (of a struct's copy nvcc makes a store for each element) ----

__device__ __forceinline__ void store_global(void* to, uint2 x) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(x.x), "r"(x.y) : "memory");
}
__device__ __forceinline__ void store_global(void* to, float4 x) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w) : "memory");
}
__device__ __forceinline__ void store_global(void* to, double2 x) {
  asm volatile("st.global.v2.f64 [%0], {%1, %2};" ::"l"(to), "d"(x.x), "d"(x.y) : "memory");
}

// ---- shared memory, and copies into it that do not wait ----

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ uint32_t load_shared(uint32_t address) {
  uint32_t x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
  return x;
}

// Copies kBytes from global to shared memory. Both addresses are aligned to kBytes. 16 bytes bypass the first-level
// cache.
template <int kBytes>
__device__ __forceinline__ void copy_async(uint32_t to, const void* from) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(kBytes) : "memory");
  }
}
// The same, but writes zeros and reads nothing unless `inside`.
template <int kBytes>
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool inside) {
  const int size = inside ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(size) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes), "r"(size)
                 : "memory");
  }
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of the last committed groups are in flight.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- matrices ----
//
// Layout of mma.sync m16n8k*, for lane = 4 g + t. A lane holds rows g and g + 8 of A [16, k], and column g of B [k, 8].
// It holds rows g and g + 8, columns 2 t and 2 t + 1 of the sums [16, 8]. A step along k is 32 bytes in every type: 16
// elements of 16 bits, or 8 of 32 bits. So ldmatrix, which moves 8 x 8 matrices of 16 bits, loads both kinds in the
// same way.

// Loads four 8 x 8 matrices of 16 bits. Lane i gives the address of row i % 8 of matrix i / 8.
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

__device__ __forceinline__ uint32_t round_to_tf32(uint32_t x) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(x)));
  return rounded;
}

// sums [16, 8] += a [16, k] b [k, 8]
#define MASKCO_MMA(name, shape_and_types)                                                                  \
  __device__ __forceinline__ void name(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    asm volatile("mma.sync.aligned." shape_and_types                                                       \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                        \
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                      \
  }
MASKCO_MMA(multiply_add_float16, "m16n8k16.row.col.f32.f16.f16.f32")
MASKCO_MMA(multiply_add_bfloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
MASKCO_MMA(multiply_add_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef MASKCO_MMA

}  // namespace maskco
