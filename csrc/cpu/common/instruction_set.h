// Which instruction set the kernels use: the best that the CPU has, or less if ATEN_CPU_CAPABILITY says so. That is
// torch's own variable, with the values default, avx2 or avx512. ATen has no name above avx512, since its AMX products
// are oneDNN's. So AMX is disabled as in oneDNN: by a ONEDNN_MAX_CPU_ISA without it, such as AVX512_CORE_BF16.
#pragma once
#if defined(__x86_64__) && defined(__linux__) && !defined(__clang__) && __GNUC__ >= 11  // whose assemblers support AMX
#define MASKCO_AMX
#include <cpuid.h>
#include <strings.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <cstring>

// Function attributes for the instruction sets.
#if defined(__x86_64__)
#define MASKCO_AVX2 __attribute__((target("arch=x86-64-v3")))
#if defined(__clang__)  // it splits vectors of 64 bytes by default
#define MASKCO_AVX512 __attribute__((target("arch=x86-64-v4"), min_vector_width(512)))
#else
#define MASKCO_AVX512 __attribute__((target("arch=x86-64-v4")))
#endif
#endif

namespace maskco {

// SSE2 or NEON; x86-64-v3; x86-64-v4; + AVX512_BF16; + AMX_BF16
enum class InstructionSet { Baseline, Avx2, Avx512, Avx512Bf16, Amx };

#ifdef MASKCO_AMX
// Whether the CPU multiplies tiles of bfloat16, and Linux lets this process use them. The tiles add 8 KiB to each
// thread's state, so a process has to request them.
inline bool amx_is_there() {
  constexpr unsigned kBits = 1 << 22 | 1 << 24;  // AMX-BF16, AMX-TILE
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & kBits) != kBits) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM of asm/prctl.h; XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

inline bool onednn_leaves_out_amx() {
  const char* most = std::getenv("ONEDNN_MAX_CPU_ISA");
  if (!most || !*most || strcasecmp(most, "DEFAULT") == 0 || strcasecmp(most, "ALL") == 0) return false;
  return !strcasestr(most, "AMX");
}
#endif

inline InstructionSet instruction_set() {
#if defined(__x86_64__)
  static const InstructionSet best = [] {
    __builtin_cpu_init();
    const char* capability = std::getenv("ATEN_CPU_CAPABILITY");
    auto asked = [&](const char* name) { return capability && std::strcmp(capability, name) == 0; };
    if (asked("default") || !(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                              __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c")))
      return InstructionSet::Baseline;
    if (asked("avx2") || !(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                           __builtin_cpu_supports("avx512cd")))
      return InstructionSet::Avx2;
#if defined(__clang__)  // see MultiplyAddPairs
    return InstructionSet::Avx512;
#endif
    if (asked("avx512") || !__builtin_cpu_supports("avx512bf16")) return InstructionSet::Avx512;
#ifdef MASKCO_AMX
    if (!onednn_leaves_out_amx() && amx_is_there()) return InstructionSet::Amx;
#endif
    return InstructionSet::Avx512Bf16;
  }();
  return best;
#else
  return InstructionSet::Baseline;
#endif
}

inline const char* instruction_set_name() {
#if defined(__x86_64__)
  switch (instruction_set()) {
    case InstructionSet::Amx:
      return "AVX-512 with bfloat16 and AMX";
    case InstructionSet::Avx512Bf16:
      return "AVX-512 with bfloat16";
    case InstructionSet::Avx512:
      return "AVX-512";
    case InstructionSet::Avx2:
      return "AVX2";
    default:
      return "SSE2";
  }
#elif defined(__aarch64__)
  return "NEON";
#else
  return "the compiler's default";
#endif
}

}  // namespace maskco
