// A register tile in AMX's tile registers, for pairs of bfloat16: 2 x 2 registers of 16 x 16 sums.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "cpu/common/instruction_set.h"
#include "cpu/common/register_tile.h"

#ifdef MASKCO_AMX

namespace maskco {

constexpr int64_t kTileRows = 16;  // of a register, each of 16 float sums or 16 pairs: 64 bytes

// The instructions, on the registers with these numbers. Intrinsics could not be inlined into a function whose target
// is set by attribute. All are volatile, since compilers do not know that the registers hold values.
struct AmxUnit {
  static MASKCO_INLINE void configure() {
    struct {
      uint8_t palette = 1, first_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } registers;
    static_assert(sizeof registers == 64);
    asm volatile("ldtilecfg %0" : : "m"(registers));
  }
  static MASKCO_INLINE void release() { asm volatile("tilerelease"); }
  template <int kTo>
  static MASKCO_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTo));
  }
  template <int kTo>
  static MASKCO_INLINE void load(const void* from, int64_t row_bytes) {
    asm volatile("tileloadd (%1,%2), %%tmm%c0" : : "i"(kTo), "r"(from), "r"(row_bytes) : "memory");
  }
  template <int kFrom>
  static MASKCO_INLINE void store(void* to, int64_t row_bytes) {
    asm volatile("tilestored %%tmm%c0, (%1,%2)" : : "i"(kFrom), "r"(to), "r"(row_bytes) : "memory");
  }
  // sums[16, 16] += a[16, 16 pairs] b[16 pairs, 16]
  template <int kSums, int kA, int kB>
  static MASKCO_INLINE void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
  }
};

// c[32, 32] = or += a[32, depth] b[depth, 32], as in RegisterTile. The operands of a are contiguous. Each instruction
// adds sums of 32 products to a register, so a long sum need not be cut. Configure the registers first.
template <class Unit, int kParts_ = 1>
struct AmxTile {
  using T = float;
  using Operand = int32_t;
  using Lane = Lanes<float, 64>;
  static constexpr int kDepth = 2;
  static constexpr int kParts = kParts_;
  static constexpr bool kStrided = false;
  static constexpr int64_t kLongest = 1 << 30;
  static constexpr int64_t kKeys = 192;  // more than elsewhere: sums are loaded and stored once for a tile
  static constexpr int kRows = 2 * kTileRows;
  static constexpr int kColumns = 2 * kTileRows;

  // The registers, configured while this object lives. They belong to its thread.
  struct Registers {
    Registers() { Unit::configure(); }
    ~Registers() { Unit::release(); }
    Registers(const Registers&) = delete;
    Registers& operator=(const Registers&) = delete;
  };

  static MASKCO_INLINE void multiply(const Operand* a, int64_t a_row, int64_t, const Operand* b, int64_t b_depth, T* c,
                                     int64_t c_row, int64_t depth, bool add) {
    constexpr int64_t kStep = kTileRows;
    T* lower = c + kStep * c_row;
    if (add) {
      Unit::template load<0>(c, c_row * 4);
      Unit::template load<1>(c + kStep, c_row * 4);
      Unit::template load<2>(lower, c_row * 4);
      Unit::template load<3>(lower + kStep, c_row * 4);
    } else {
      Unit::template zero<0>();
      Unit::template zero<1>();
      Unit::template zero<2>();
      Unit::template zero<3>();
    }
    int64_t k = 0;
    for (; k + kStep <= depth; k += kStep) step(a + k, a_row, b + k * b_depth, b_depth);
    if (k < depth) {
      // Fewer operands than a register's row: pad with zeros. The memory after them may hold NaN, or may not exist.
      alignas(64) Operand last_a[kRows * kStep], last_b[kStep * kColumns];
      for (int64_t r = 0; r < kRows; r++)
        for (int64_t x = 0; x < kStep; x++) last_a[r * kStep + x] = x < depth - k ? a[r * a_row + k + x] : 0;
      for (int64_t x = 0; x < kStep; x++)
        for (int64_t l = 0; l < kColumns; l++) last_b[x * kColumns + l] = x < depth - k ? b[(k + x) * b_depth + l] : 0;
      step(last_a, kStep, last_b, kColumns);
    }
    Unit::template store<0>(c, c_row * 4);
    Unit::template store<1>(c + kStep, c_row * 4);
    Unit::template store<2>(lower, c_row * 4);
    Unit::template store<3>(lower + kStep, c_row * 4);
  }

 private:
  static MASKCO_INLINE void step(const Operand* a, int64_t a_row, const Operand* b, int64_t b_depth) {
    Unit::template load<6>(b, b_depth * 4);
    Unit::template load<4>(a, a_row * 4);
    Unit::template multiply<0, 4, 6>();
    Unit::template load<7>(b + kTileRows, b_depth * 4);
    Unit::template multiply<1, 4, 7>();
    Unit::template load<5>(a + kTileRows * a_row, a_row * 4);
    Unit::template multiply<2, 5, 6>();
    Unit::template multiply<3, 5, 7>();
  }
};

#ifndef MASKCO_AMX_MODEL
#define MASKCO_AMX_TARGET MASKCO_AVX512
using AmxHere = AmxUnit;
inline bool has_amx() { return instruction_set() == InstructionSet::Amx; }
#else
#define MASKCO_AMX_TARGET MASKCO_AVX2
#endif

}  // namespace maskco

#ifdef MASKCO_AMX_MODEL
#include "cpu/common/amx_model.h"
#endif

#endif
