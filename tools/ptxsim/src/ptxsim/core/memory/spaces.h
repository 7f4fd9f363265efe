// Address spaces: every access is checked against the allocations, the shared memory of its block, the local
// memory of its thread or the parameters, and becomes host addresses.
#pragma once
#include <algorithm>
#include <cstring>

#include "memory/metrics.h"
#include "memory/races.h"

namespace ptxsim {

// Generic addresses of shared, local and parameter memory lie in windows.
constexpr u64 SHARED_WINDOW = 0x7e0000000000ull, LOCAL_WINDOW = 0x7e1000000000ull, PARAM_WINDOW = 0x7e2000000000ull,
              WINDOW_SIZE = 0x1000000000ull;
namespace Access {
enum : int { READ, WRITE, ATOMIC, ASYNC };
}
inline bool in_window(u64 a, u64 win) { return a - win < WINDOW_SIZE; }
inline void addresses_of(Warp& warp, const Instruction& in, u64* addresses) {
  if (in.src0 == NO_SLOT) {
    for (int l = 0; l < 32; l++) addresses[l] = in.immediate;
  } else if (in.address_width == 8) {
    const u64* a = warp.lanes<u64>(in.src0);
    for (int l = 0; l < 32; l++) addresses[l] = a[l] + in.immediate;
  } else {
    const u32* a = warp.lanes<u32>(in.src0);
    for (int l = 0; l < 32; l++) addresses[l] = (u32)(a[l] + (u32)in.immediate);
  }
}
// The last allocation that starts at or before an address, or null.
inline const Allocation* find_allocation(const LaunchConfig* launch, u64 a) {
  u64 lo = 0, hi = launch->num_allocations;
  while (lo < hi) {
    u64 mid = (lo + hi) / 2;
    if (launch->allocations[mid].base <= a)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo ? &launch->allocations[lo - 1] : nullptr;
}
inline void fail_out_of_bounds(Warp& warp, const Instruction& in, int l, u64 a, int bytes, bool wr) {
  const Allocation* A = find_allocation(warp.block->launch, a);
  if (A && a < A->base + A->size)
    fail(warp, Kind::OUT_OF_BOUNDS, in.pc, l, a, "%d-byte %s crosses the end of a %llu-byte buffer: offset %llu", bytes,
         wr ? "write" : "read", ull(A->size), ull(a - A->base));
  const Allocation* N =
      A ? (A + 1 < warp.block->launch->allocations + warp.block->launch->num_allocations ? A + 1 : nullptr)
        : (warp.block->launch->num_allocations ? warp.block->launch->allocations : nullptr);
  if (a < 4096)
    fail(warp, Kind::OUT_OF_BOUNDS, in.pc, l, a, "%d-byte %s through a null pointer (0x%llx)", bytes,
         wr ? "write" : "read", ull(a));
  if (N && (!A || N->base - a < a - (A->base + A->size)))
    fail(warp, Kind::OUT_OF_BOUNDS, in.pc, l, a,
         "%d-byte %s out of bounds: %llu bytes before the start of a %llu-byte buffer", bytes, wr ? "write" : "read",
         ull(N->base - a), ull(N->size));
  if (A)
    fail(warp, Kind::OUT_OF_BOUNDS, in.pc, l, a, "%d-byte %s out of bounds: offset %llu of a %llu-byte buffer", bytes,
         wr ? "write" : "read", ull(a - A->base), ull(A->size));
  fail(warp, Kind::OUT_OF_BOUNDS, in.pc, l, a, "%d-byte %s out of bounds (no buffer there)", bytes,
       wr ? "write" : "read");
}
inline void resolve_global(Warp& warp, const Instruction& in, u32 m, const u64* addresses, u8** host, int bytes,
                           bool wr, int align, bool metric) {
  u64 lo = ~0ull, hi = 0, all_bits = 0;
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) {
      u64 a = addresses[l];
      all_bits |= a;
      if (a < lo) lo = a;
      if (a > hi) hi = a;
    }
  if (all_bits & (align - 1))
    for (int l = 0; l < 32; l++)
      if ((m >> l & 1) && (addresses[l] & (align - 1)))
        report(warp, Kind::MISALIGNED, in.pc, -1, l, addresses[l],
               "misaligned %d-byte global %s (address must be a multiple of %d)", bytes, wr ? "write" : "read", align);
  // Most accesses are to the buffer of the access before: one comparison for all lanes.
  Allocation& c = warp.worker->last_allocation;
  bool one_buffer = true;
  if (!(lo >= c.base && hi + bytes <= c.base + c.size && hi < c.base + c.size)) {
    const Allocation* A = find_allocation(warp.block->launch, lo);
    if (A && hi >= lo && hi + bytes <= A->base + A->size)
      c = *A;
    else {
      for (int l = 0; l < 32; l++)
        if (m >> l & 1) {
          const Allocation* B = find_allocation(warp.block->launch, addresses[l]);
          if (!B || addresses[l] + bytes > B->base + B->size || addresses[l] + bytes < addresses[l])
            fail_out_of_bounds(warp, in, l, addresses[l], bytes, wr);
          if (wr && (B->flags & Allocation::READ_ONLY))
            fail(warp, Kind::READ_ONLY, in.pc, l, addresses[l],
                 "write to read-only memory (a constant, or a buffer passed as const)");
          host[l] = B->host + (addresses[l] - B->base);
        }
      one_buffer = false;
    }
  }
  if (one_buffer) {
    if (wr && (c.flags & Allocation::READ_ONLY))
      fail(warp, Kind::READ_ONLY, in.pc, __builtin_ctz(m), lo,
           "write to read-only memory (a constant, or a buffer passed as const)");
    for (int l = 0; l < 32; l++) host[l] = c.host + (addresses[l] - c.base);
  }
  if (metric && warp.block->launch->metrics) count_global_access(warp, in, m, addresses, bytes);
}
inline void check_shared_state(Warp& warp, const Instruction& in, int l, u64 a, int bytes, int mode) {
  Block& block = *warp.block;
  u8* st = &block.shared_state[a];
  static const u8 ONES[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  bool clean = bytes == 4    ? !memcmp(st, ONES, 4)
               : bytes == 16 ? !memcmp(st, ONES, 16)
               : bytes == 8  ? !memcmp(st, ONES, 8)
               : bytes == 2  ? !memcmp(st, ONES, 2)
                             : st[0] == 1 && bytes == 1;
  if (!clean && (mode == Access::READ || mode == Access::ATOMIC)) {
    for (int k = 0; k < bytes; k++)
      if (st[k] != SharedState::INITIALISED) {
        if (st[k] & SharedState::RED_ZONE)
          fail(warp, Kind::OUT_OF_BOUNDS, in.pc, l, a + k,
               "%d-byte shared %s at offset %llu runs out of its array (into a red zone)", bytes,
               mode ? "atomic" : "read", ull(a));
        if (st[k] & SharedState::IN_FLIGHT)
          report(warp, Kind::ASYNC_IN_FLIGHT, in.pc, -1, l, a + k,
                 "read of shared memory while a cp.async to it is in flight (no wait_group/barrier before)");
        else
          report(warp, Kind::UNINITIALISED_SHARED, in.pc, -1, l, a + k,
                 "read of uninitialised shared memory (%d bytes at offset %llu)", bytes, ull(a));
        break;
      }
  }
  if (mode == Access::ASYNC || (mode && !clean))
    for (int k = 0; k < bytes; k++) {
      if (st[k] & SharedState::RED_ZONE)
        fail(warp, Kind::OUT_OF_BOUNDS, in.pc, l, a + k,
             "%d-byte shared write at offset %llu runs out of its array (into a red zone)", bytes, ull(a));
      st[k] = mode == Access::ASYNC ? (st[k] & SharedState::INITIALISED) | SharedState::IN_FLIGHT
                                    : SharedState::INITIALISED;
    }
  if (block.launch->race && (block.num_warps > 1 || block.launch->race > 1)) {
    int g = block.launch->granule_log2;
    u64 g0 = a >> g, g1 = (a + bytes - 1) >> g;
    for (u64 q = g0; q <= g1; q++) {
      if (mode == Access::READ)
        check_race_of_read(warp, in, l, a, block.shadow[q]);
      else
        check_race_of_write(warp, in, l, a, block.shadow[q], mode == Access::ATOMIC);
    }
  }
}
inline void resolve_shared(Warp& warp, const Instruction& in, u32 m, const u64* addresses, u8** host, int bytes,
                           int mode, int align, bool metric) {
  Block& block = *warp.block;
  u64 size = block.launch->shared_size;
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) {
      u64 a = addresses[l];
      if (a & (align - 1))
        report(warp, Kind::MISALIGNED, in.pc, -1, l, a,
               "misaligned %d-byte shared %s (offset must be a multiple of %d)", bytes, mode ? "write" : "read", align);
      if (a + bytes > size || a >= size)
        fail(warp, Kind::OUT_OF_BOUNDS, in.pc, l, a,
             "%d-byte shared %s out of bounds: offset %llu (0x%llx), block has %llu bytes (%llu dynamic)", bytes,
             mode ? "write" : "read", ull(a), ull(a), ull(block.launch->user_shared),
             ull(block.launch->dynamic_shared));
      host[l] = block.shared.data() + a;
      check_shared_state(warp, in, l, a, bytes, mode);
    }
  if (metric && block.launch->metrics) count_shared_access(warp, in, m, addresses, bytes);
}
inline void resolve_local(Warp& warp, const Instruction& in, u32 m, const u64* addresses, u8** host, int bytes, bool wr,
                          int align) {
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) {
      u64 a = addresses[l];
      if (a & (align - 1)) report(warp, Kind::MISALIGNED, in.pc, -1, l, a, "misaligned %d-byte local access", bytes);
      if (a + bytes > warp.local_size || a >= warp.local_size)
        fail(warp, Kind::OUT_OF_BOUNDS, in.pc, l, a, "%d-byte local %s out of bounds: offset %lld of %llu", bytes,
             wr ? "write" : "read", (long long)a, ull(warp.local_size));
      host[l] = warp.local + (u64)l * warp.local_size + a;
    }
}
inline void resolve_param(Warp& warp, const Instruction& in, u32 m, const u64* addresses, u8** host, int bytes,
                          bool wr) {
  const LaunchConfig* launch = warp.block->launch;
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) {
      if (addresses[l] + bytes > launch->params_size || addresses[l] >= launch->params_size)
        fail(warp, Kind::OUT_OF_BOUNDS, in.pc, l, addresses[l],
             "%d-byte read of kernel parameters out of bounds: offset %lld of %llu", bytes, (long long)addresses[l],
             ull(launch->params_size));
      if (wr) fail(warp, Kind::READ_ONLY, in.pc, l, addresses[l], "write to kernel parameter memory");
      host[l] = launch->params + addresses[l];
    }
}
inline void resolve(Warp& warp, const Instruction& in, u64* addresses, u8** host, int bytes, int mode, int align) {
  u32 m = warp.mask;
  bool wr = mode != Access::READ;
  switch (in.space) {
    case Space::GLOBAL:
      resolve_global(warp, in, m, addresses, host, bytes, wr, align, true);
      return;
    case Space::CONST:
      resolve_global(warp, in, m, addresses, host, bytes, wr, align, false);
      return;
    case Space::SHARED:
      resolve_shared(warp, in, m, addresses, host, bytes, mode, align, true);
      return;
    case Space::LOCAL:
      resolve_local(warp, in, m, addresses, host, bytes, wr, align);
      return;
    case Space::PARAM:
      resolve_param(warp, in, m, addresses, host, bytes, wr);
      return;
    case Space::GENERIC:
      break;
  }
  u32 ms = 0, ml = 0, mp = 0;
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) {
      u64 a = addresses[l];
      if (a < SHARED_WINDOW) continue;
      if (in_window(a, SHARED_WINDOW))
        ms |= 1u << l, addresses[l] -= SHARED_WINDOW;
      else if (in_window(a, LOCAL_WINDOW))
        ml |= 1u << l, addresses[l] -= LOCAL_WINDOW;
      else if (in_window(a, PARAM_WINDOW))
        mp |= 1u << l, addresses[l] -= PARAM_WINDOW;
    }
  u32 mg = m & ~(ms | ml | mp);
  if (mg) resolve_global(warp, in, mg, addresses, host, bytes, wr, align, true);
  if (ms) resolve_shared(warp, in, ms, addresses, host, bytes, mode, align, true);
  if (ml) resolve_local(warp, in, ml, addresses, host, bytes, wr, align);
  if (mp) resolve_param(warp, in, mp, addresses, host, bytes, wr);
}

}  // namespace ptxsim
