// Findings: what a check found, where, and by which thread.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "engine/state.h"

namespace ptxsim {

inline void thread_of(const Warp& warp, int lane, i32* thread) {
  u32 linear = warp.id * 32 + lane;
  const u32* shape = warp.block->launch->block;
  thread[0] = linear % shape[0];
  thread[1] = linear / shape[0] % shape[1];
  thread[2] = linear / shape[0] / shape[1];
}
inline Finding make_finding(Warp& warp, Kind kind, int pc, int lane, u64 address, const char* format, va_list args) {
  Finding f;
  memset(&f, 0, sizeof f);
  f.kind = kind;
  f.pc = pc;
  f.other_pc = -1;
  f.address = address;
  f.count = 1;
  for (int k = 0; k < 3; k++) f.block[k] = warp.block->index[k];
  thread_of(warp, lane < 0 ? 0 : lane, f.thread);
  vsnprintf(f.message, sizeof f.message, format, args);
  return f;
}
// Ends the launch with a finding.
[[noreturn]] inline void fail(Warp& warp, Kind kind, int pc, int lane, u64 address, const char* format, ...) {
  va_list args;
  va_start(args, format);
  SimError error{make_finding(warp, kind, pc, lane, address, format, args)};
  va_end(args);
  throw error;
}
// Reports by the level of the kind. Returns only if the simulation goes on.
inline void report(Warp& warp, Kind kind, int pc, int other_pc, int lane, u64 address, const char* format, ...) {
  Level level = warp.block->launch->check_levels[int(kind)];
  if (level == Level::OFF) return;
  auto& findings = warp.worker->findings;
  std::array<int, 3> key{int(kind), pc, other_pc};
  auto it = findings.find(key);
  if (it != findings.end()) {
    it->second.count++;
    if (level == Level::WARN) return;
  }
  va_list args;
  va_start(args, format);
  Finding f = make_finding(warp, kind, pc, lane, address, format, args);
  va_end(args);
  f.other_pc = other_pc;
  if (level == Level::RAISE) throw SimError{f};
  findings[key] = f;
}

}  // namespace ptxsim
