// cp.async. The source is read at once, the destination is written as late as the waits allow.
#pragma once
#include "memory/spaces.h"

namespace ptxsim {

// Delivers the copies of these lanes, but for the newest `keep` groups of each.
inline void land_copies(Warp& warp, u32 lanes, int keep, bool all) {
  Block& block = *warp.block;
  size_t k = 0;
  for (size_t q = 0; q < warp.pending_copies.size(); q++) {
    AsyncCopy& o = warp.pending_copies[q];
    // groups before copy_group are committed; the newest `keep` of them may stay pending; `all` also takes uncommitted
    // ones
    bool done = (lanes >> o.lane & 1) && (all || (i64)o.group < (i64)warp.copy_group[o.lane] - keep);
    if (!done) {
      if (k != q) warp.pending_copies[k] = o;
      k++;
      continue;
    }
    memcpy(block.shared.data() + o.dst, o.data, o.size);
    memset(&block.shared_state[o.dst], SharedState::INITIALISED, o.size);
    if (block.launch->race && (block.num_warps > 1 || block.launch->race > 1)) {
      int g = block.launch->granule_log2;
      for (u64 q2 = o.dst >> g; q2 <= (u64)(o.dst + o.size - 1) >> g; q2++) {
        Shadow& s = block.shadow[q2];
        s.write_lane = o.lane;
        s.write_epoch = warp.epoch;
        s.write_warp = warp.id;
        s.write_clock = warp.clock[warp.id];
        s.write_pc = o.pc;
        s.write_atomic = 0;
      }
    }
  }
  warp.pending_copies.resize(k);
}
inline void op_cpasync(Warp& warp, const Instruction& in) {
  u64 addresses[32], sources[32];
  u8 *host[32], *source_host[32];
  addresses_of(warp, in, addresses);
  int n = in.size;
  if (in.space == Space::GENERIC)
    for (int l = 0; l < 32; l++) addresses[l] -= SHARED_WINDOW;
  for (int l = 0; l < 32; l++) {
    if (in.copy.source == NO_SLOT)
      sources[l] = in.copy.offset;
    else if (in.copy.source_width == 8)
      sources[l] = warp.lanes<u64>(in.copy.source)[l] + in.copy.offset;
    else
      sources[l] = warp.lanes<u32>(in.copy.source)[l] + in.copy.offset;
  }
  u32 source_bytes[32], readers = 0, full = warp.mask;
  for (int l = 0; l < 32; l++) {
    source_bytes[l] = in.src2 != NO_SLOT ? warp.lanes<u32>(in.src2)[l] : (u32)n;
    if (in.pred_c != NO_SLOT && (predicate(warp, in.pred_c) >> l & 1)) source_bytes[l] = 0;
    if ((full >> l & 1) && source_bytes[l] > (u32)n)
      fail(warp, Kind::OTHER, in.pc, l, 0, "cp.async src-size %u > cp-size %d", source_bytes[l], n);
    if ((full >> l & 1) && source_bytes[l]) readers |= 1u << l;
  }
  if (readers) {
    bool same = true;
    for (int l = 0; l < 32; l++)
      if ((readers >> l & 1) && source_bytes[l] != (u32)n) same = false;
    if (same)
      resolve_global(warp, in, readers, sources, source_host, n, false, n, true);
    else
      for (int l = 0; l < 32; l++)
        if (readers >> l & 1) {
          if (sources[l] & (n - 1))
            report(warp, Kind::MISALIGNED, in.pc, -1, l, sources[l], "misaligned %d-byte cp.async source", n);
          u64 a2[32];
          u8* p2[32];
          a2[l] = sources[l];
          resolve_global(warp, in, 1u << l, a2, p2, source_bytes[l], false, 1, false);
          source_host[l] = p2[l];
        }
  }
  bool met = warp.block->launch->metrics;
  InstructionStats before = warp.stats[in.pc];
  resolve_shared(warp, in, full, addresses, host, n, Access::ASYNC, n, false);
  if (met) {
    InstructionStats& s = warp.stats[in.pc];
    u64 acc = s.accesses, by = s.bytes;
    count_shared_access(warp, in, full, addresses, n);
    s.accesses = acc;
    s.bytes = by;
    if (!readers) s.accesses = before.accesses + 1;
  }
  for (int l = 0; l < 32; l++)
    if (full >> l & 1) {
      AsyncCopy o;
      o.dst = (u32)addresses[l];
      o.size = n;
      o.lane = l;
      o.group = warp.copy_group[l];
      o.pc = in.pc;
      memset(o.data, 0, 16);
      if (source_bytes[l]) memcpy(o.data, source_host[l], source_bytes[l]);
      warp.pending_copies.push_back(o);
    }
}
inline void op_cpcommit(Warp& warp, const Instruction&) {
  for (int l = 0; l < 32; l++)
    if (warp.mask >> l & 1) warp.copy_group[l]++;
}
constexpr u8 WAIT_ALL = 1;  // operation of cp.async.wait_all, which takes uncommitted copies too
inline void op_cpwait(Warp& warp, const Instruction& in) {
  if (!warp.pending_copies.empty()) land_copies(warp, warp.mask, (int)in.immediate, in.operation == WAIT_ALL);
}

}  // namespace ptxsim
