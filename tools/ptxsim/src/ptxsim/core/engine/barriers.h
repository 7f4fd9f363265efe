// Barriers of the block.
#pragma once
#include "engine/groups.h"
#include "memory/async.h"

namespace ptxsim {

inline void complete_barrier(Block& block, Barrier& barrier) {
  const Program& program = *block.warps[0].worker->program;
  for (int k = 0; k < block.num_warps; k++)
    if (barrier.waiting >> k & 1) {
      Warp& warp = block.warps[k];
      const Instruction& in = program.code[warp.barrier_pc];
      warp.mask = warp.current;
      if (in.operation == BarrierOp::REDUCE) {
        if (in.barrier.reduction == BarrierSpec::COUNT) {
          u32* d = warp.lanes<u32>(in.dst);
          for_lanes(warp.mask, [&](int l) { d[l] = barrier.count; });
        } else
          set_predicate(warp, in.pred_dst,
                        (in.barrier.reduction == BarrierSpec::ALL ? barrier.all : barrier.any) ? ~0u : 0);
      }
      join_clock(warp.clock, barrier.clock, block.num_warps);
      warp.clock[warp.id]++;
      warp.epoch++;
      warp.state = Warp::RUNNING;
      warp.barrier_id = -1;
      warp.pc++;
      update_min_other_pc(warp);
    }
  barrier = Barrier();
}
inline bool barrier_ready(Block& block, Barrier& barrier) {
  if (!barrier.warps) return false;
  if (barrier.explicit_count) return barrier.arrived >= barrier.expected;
  int live = 0;
  for (auto& warp : block.warps)
    if (warp.state != Warp::DONE) live++;
  return (int)barrier.warps >= live;
}
// The whole warp is at a barrier instruction; returns true if it must wait
inline bool arrive(Warp& warp, const Instruction& in) {
  Block& block = *warp.block;
  int lane = __builtin_ctz(warp.current);
  u32 id = warp.lanes<u32>(in.src0)[lane];
  u32 count = in.src1 != NO_SLOT ? warp.lanes<u32>(in.src1)[lane] : 0;
  if (id > 15 && !in.barrier.cluster) fail(warp, Kind::BARRIER, in.pc, lane, 0, "barrier id %u out of range", id);
  if (in.src1 != NO_SLOT && (count == 0 || count % 32))
    fail(warp, Kind::BARRIER, in.pc, lane, 0, "barrier %u: thread count %u is not a multiple of the warp size", id,
         count);
  Barrier& barrier = block.barriers[id];
  bool full = in.src1 == NO_SLOT;
  if (full) count = (u32)block.num_warps * 32;
  if (full && in.operation == BarrierOp::ARRIVE)
    fail(warp, Kind::BARRIER, in.pc, lane, 0, "bar.arrive without a thread count");
  if (barrier.warps == 0) {
    barrier.explicit_count = !full;
    barrier.expected = count;
    barrier.pc = in.pc;
    barrier.first_warp = warp.id;
  } else {
    if (barrier.expected != count)
      fail(warp, Kind::BARRIER, in.pc, lane, 0, "barrier %u used with different thread counts at once", id);
    if (full && !barrier.explicit_count && barrier.pc != in.pc)
      report(warp, Kind::BARRIER_MISMATCH, in.pc, barrier.pc, lane, 0,
             "warps %d and %d meet at different barrier instructions (barrier %u): divergent __syncthreads",
             barrier.first_warp, warp.id, id);
  }
  if (warp.live != warp.exists && !block.exit_warned) {
    block.exit_warned = true;
    report(warp, Kind::BARRIER_AFTER_EXIT, in.pc, -1, lane, 0,
           "barrier reached after some threads of warp %d have exited", warp.id);
  }
  if (full && !block.exit_warned)
    for (auto& q : block.warps)
      if (q.state == Warp::DONE) {
        block.exit_warned = true;
        report(warp, Kind::BARRIER_AFTER_EXIT, in.pc, -1, lane, 0,
               "barrier reached after all threads of warp %d have exited", q.id);
        break;
      }
  barrier.warps++;
  barrier.arrived += 32;
  join_clock(barrier.clock, warp.clock, block.num_warps);
  if (in.operation == BarrierOp::REDUCE) {
    u32 p = predicate(warp, in.pred_c) & warp.live;
    barrier.count += __builtin_popcount(p);
    if (p != warp.live) barrier.all = 0;
    if (p) barrier.any = 1;
  }
  if (in.operation == BarrierOp::ARRIVE) {
    warp.clock[warp.id]++;
    if (barrier_ready(block, barrier)) complete_barrier(block, barrier);
    return false;
  }
  barrier.waiting |= 1ull << warp.id;
  warp.state = Warp::AT_BARRIER;
  warp.barrier_id = (int)id;
  warp.barrier_pc = in.pc;
  if (barrier_ready(block, barrier)) complete_barrier(block, barrier);
  return warp.state == Warp::AT_BARRIER;
}
inline void check_barriers(Block& block) {
  for (Barrier& barrier : block.barriers)
    if (barrier.warps && barrier_ready(block, barrier)) complete_barrier(block, barrier);
}

}  // namespace ptxsim
