// What loops need to vectorise under any instruction set: forced inlining, and an exponential without branches.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define MASKCO_INLINE inline __attribute__((always_inline))

namespace maskco {

// e^x for x <= 0 or so, without a branch: 2^n by exponent bits, the rest by a polynomial (Cephes), within 2 ulp.
// NaN stays NaN; below -87.3 the result is 0 and above 88 it is inf.
MASKCO_INLINE float fast_exp(float x) {
  const float clamped = x < -87.3f ? -87.3f : (x > 88.f ? 88.f : x);  // (a NaN falls through both comparisons)
  const float shifted = clamped * 1.44269504088896341f + 12582912.f;  // rounds to an integer in the low mantissa bits
  const float n = shifted - 12582912.f;
  float r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  const float e = p * scale;
  return x < -87.3f ? 0.f : (x > 88.f ? INFINITY : e);
}
MASKCO_INLINE double fast_exp(double x) { return std::exp(x); }

}  // namespace maskco
