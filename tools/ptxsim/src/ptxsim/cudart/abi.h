// Structs that the simulated runtime and runtime.py share. runtime.py mirrors them, and compares every size and offset
// with ptxsim_cudart_layout() when it loads the library.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../layout.h"

namespace ptxsim_cudart {

using u64 = uint64_t;

struct SimLaunch {
  const char* kernel;
  int module;
  unsigned grid[3], block[3], cluster[3];
  int max_dynamic, cooperative;
  u64 shared, stream;
  void** args;
};
struct SimAllocation {
  u64 base, size;
  uint8_t* host;
  u64 flags;
  static constexpr u64 READ_ONLY = 1, ALLOCATED = 2, MAPPED = 4;  // flags: const, by cudaMalloc, by ptxsim_map
};
struct SimDevice {
  int major, minor, sms, threads_sm, blocks_sm, regs_sm, shared_sm, shared_block, l2;
};
struct SimFunction {
  int regs, static_shared, local, constant, max_threads, ptx, active;
};
struct SimHooks {
  int (*launch)(const SimLaunch*);
  int (*function)(int module, const char* kernel, int block, u64 shared, SimFunction* out);
  int (*symbol)(int module, const char* name, u64* addr, u64* size);
  void (*error)(int code, const char* text);  // an API error that host code should never make
};

inline constexpr ptxsim::Layout LAYOUT[] = {
    PTXSIM_STRUCT(SimLaunch),
    PTXSIM_FIELD(SimLaunch, kernel),
    PTXSIM_FIELD(SimLaunch, module),
    PTXSIM_FIELD(SimLaunch, grid),
    PTXSIM_FIELD(SimLaunch, block),
    PTXSIM_FIELD(SimLaunch, cluster),
    PTXSIM_FIELD(SimLaunch, max_dynamic),
    PTXSIM_FIELD(SimLaunch, cooperative),
    PTXSIM_FIELD(SimLaunch, shared),
    PTXSIM_FIELD(SimLaunch, stream),
    PTXSIM_FIELD(SimLaunch, args),
    PTXSIM_STRUCT(SimAllocation),
    PTXSIM_FIELD(SimAllocation, base),
    PTXSIM_FIELD(SimAllocation, size),
    PTXSIM_FIELD(SimAllocation, host),
    PTXSIM_FIELD(SimAllocation, flags),
    PTXSIM_STRUCT(SimDevice),
    PTXSIM_FIELD(SimDevice, major),
    PTXSIM_FIELD(SimDevice, minor),
    PTXSIM_FIELD(SimDevice, sms),
    PTXSIM_FIELD(SimDevice, threads_sm),
    PTXSIM_FIELD(SimDevice, blocks_sm),
    PTXSIM_FIELD(SimDevice, regs_sm),
    PTXSIM_FIELD(SimDevice, shared_sm),
    PTXSIM_FIELD(SimDevice, shared_block),
    PTXSIM_FIELD(SimDevice, l2),
    PTXSIM_STRUCT(SimFunction),
    PTXSIM_FIELD(SimFunction, regs),
    PTXSIM_FIELD(SimFunction, static_shared),
    PTXSIM_FIELD(SimFunction, local),
    PTXSIM_FIELD(SimFunction, constant),
    PTXSIM_FIELD(SimFunction, max_threads),
    PTXSIM_FIELD(SimFunction, ptx),
    PTXSIM_FIELD(SimFunction, active),
    PTXSIM_STRUCT(SimHooks),
    PTXSIM_FIELD(SimHooks, launch),
    PTXSIM_FIELD(SimHooks, function),
    PTXSIM_FIELD(SimHooks, symbol),
    PTXSIM_FIELD(SimHooks, error),
};

}  // namespace ptxsim_cudart
