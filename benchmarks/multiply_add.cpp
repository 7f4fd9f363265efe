// Prints the GFLOP/s of float32 multiply-adds that one core reaches when nothing waits for memory: the ceiling of every
// matrix product. Twelve independent sums keep the multipliers busy; the compiler's vectors are as wide as the CPU's.
#include <chrono>
#include <cstdio>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));

int main() {
  constexpr int kSums = 12, kLanes = kBytes / 4;
  constexpr long kSteps = 20'000'000;
  double best = 0;
  for (int repeat = 0; repeat < 7; repeat++) {
    Vector sum[kSums], x = Vector{} + 0.5f, y = Vector{} + 0.7f;
    for (int i = 0; i < kSums; i++)
      sum[i] = Vector{} + float(i);  // the compiler must not know that two are equal, or constant
    const auto start = std::chrono::steady_clock::now();
    for (long step = 0; step < kSteps; step++) {
#pragma GCC unroll 16
      for (int i = 0; i < kSums; i++) sum[i] = sum[i] * x + y;
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    float total = 0;
    for (auto& s : sum) total += s[0];
    const double gflops = 2.0 * kSteps * kSums * kLanes / seconds * 1e-9;
    if (total != 0 && gflops > best) best = gflops;
  }
  std::printf("%.1f\n", best);
}
