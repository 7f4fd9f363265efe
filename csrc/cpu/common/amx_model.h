// AMX's instructions in plain C++, for tests on CPUs without AMX (tests/ops/test_amx.py).
#pragma once
#include <atomic>
#include <cfloat>
#include <cmath>

namespace maskco {

inline std::atomic<int64_t> amx_products{0};  // of two registers
extern "C" __attribute__((used, visibility("default"))) inline int64_t maskco_amx_products() { return amx_products; }

struct AmxModel {
  static void configure() {
    std::memset(state(), 0, sizeof(State));  // as the instruction does
    state()->configured = true;
  }
  static void release() { state()->configured = false; }
  template <int kTo>
  static void zero() {
    std::memset(tile(kTo), 0, sizeof(Tile));
  }
  template <int kTo>
  static void load(const void* from, int64_t row_bytes) {
    for (int r = 0; r < kTileRows; r++)
      std::memcpy(tile(kTo)[r], static_cast<const char*>(from) + r * row_bytes, sizeof(Row));
  }
  template <int kFrom>
  static void store(void* to, int64_t row_bytes) {
    for (int r = 0; r < kTileRows; r++)
      std::memcpy(static_cast<char*>(to) + r * row_bytes, tile(kFrom)[r], sizeof(Row));
  }
  // This follows Intel's manual. The pairs' first halves and second halves have one sum each, by fused multiply-adds.
  // Then both sums are added. Denormal numbers are 0, in inputs and results.
  template <int kSums, int kA, int kB>
  MASKCO_AMX_TARGET static void multiply() {
    const Row *a = tile(kA), *b = tile(kB);
    amx_products++;
    for (int r = 0; r < kTileRows; r++) {
      float first[kTileRows] = {}, second[kTileRows] = {};
      for (int k = 0; k < kTileRows; k++)
        for (int l = 0; l < kTileRows; l++) {
          first[l] = flushed(std::fma(low(a[r][k]), low(b[k][l]), first[l]));
          second[l] = flushed(std::fma(high(a[r][k]), high(b[k][l]), second[l]));
        }
      for (int l = 0; l < kTileRows; l++) {
        float sum;
        std::memcpy(&sum, &tile(kSums)[r][l], 4);
        sum = flushed(flushed(sum) + flushed(first[l] + second[l]));
        std::memcpy(&tile(kSums)[r][l], &sum, 4);
      }
    }
  }

 private:
  using Row = uint32_t[kTileRows];
  using Tile = Row[kTileRows];
  struct State {
    Tile tiles[8];
    bool configured;
  };
  static State* state() {
    static thread_local State registers;
    return &registers;
  }
  static Row* tile(int number) {
    if (!state()->configured) std::abort();  // an invalid instruction
    return state()->tiles[number];
  }
  static MASKCO_INLINE float flushed(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.f, x) : x; }
  static MASKCO_INLINE float half(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return flushed(x);
  }
  static MASKCO_INLINE float low(uint32_t pair) { return half(pair << 16); }
  static MASKCO_INLINE float high(uint32_t pair) { return half(pair & 0xffff0000); }
};

using AmxHere = AmxModel;
inline bool has_amx() { return true; }

}  // namespace maskco
