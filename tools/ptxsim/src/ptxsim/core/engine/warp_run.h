// Runs one warp until it blocks, ends or has used up its quantum.
#pragma once
#include "engine/barriers.h"

namespace ptxsim {

inline void next_instruction(Warp& warp) {
  warp.pc++;
  if (warp.num_groups) update_min_other_pc(warp);
}
// In each of these, m has the lanes of the running group whose guard holds. It is not empty.
inline void branch(Warp& warp, const Instruction& in, u32 m) {
  u32 fall_through = warp.current & ~m;
  if (!fall_through) {
    warp.pc = in.target;
    if (warp.num_groups) update_min_other_pc(warp);
    return;
  }
  warp.stats[warp.pc].divergent++;
  push_group(warp, warp.pc + 1, fall_through, false);
  push_group(warp, in.target, m, false);
  warp.current = 0;
  pick_group(warp);
}
inline void branch_by_table(Warp& warp, const Instruction& in, u32 m) {  // m may be empty
  if (warp.current & ~m) push_group(warp, warp.pc + 1, warp.current & ~m, false);
  const u32* index = warp.lanes<u32>(in.src0);
  const int* targets = warp.slots(in);
  int pc = warp.pc, changes = 0, last = -1;
  warp.current = 0;
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) {
      if (index[l] >= (u32)in.num_slots) fail(warp, Kind::OTHER, pc, l, 0, "brx.idx index %u out of range", index[l]);
      int target = targets[index[l]];
      if (target != last) changes++;
      last = target;
      push_group(warp, target, 1u << l, false);
    }
  if (changes > 1) warp.stats[pc].divergent++;
  pick_group(warp);
}
// Returns true if no lane of the warp is left.
inline bool exit_lanes(Warp& warp, u32 m) {
  if (!warp.pending_copies.empty()) land_copies(warp, m, 0, true);
  warp.live &= ~m;
  warp.current &= ~m;
  if (warp.num_groups) wake_groups(warp);
  if (warp.current) {
    next_instruction(warp);
    return false;
  }
  if (pick_group(warp)) return false;
  warp.state = Warp::DONE;
  return true;
}
// Returns true if the warp has to wait for others.
inline bool meet_at_barrier(Warp& warp, const Instruction& in, u32 m) {
  if (m != warp.current) {
    push_group(warp, warp.pc + 1, warp.current & ~m, false);
    warp.current = m;
    update_min_other_pc(warp);
  }
  if (warp.current != warp.live) {  // the rest of the warp has to come first
    push_group(warp, warp.pc, warp.current, true);
    warp.current = 0;
    pick_group(warp);
    return false;
  }
  if (arrive(warp, in)) return true;
  if (in.operation == BarrierOp::ARRIVE) next_instruction(warp);
  return false;
}
// Lanes with the same member mask execute the instruction together, once all live lanes of the mask are here.
inline void sync_lanes(Warp& warp, const Instruction& in, u32 m) {
  if (m != warp.current) {
    push_group(warp, warp.pc + 1, warp.current & ~m, false);
    warp.current = m;
  }
  u32 masks[32];  // (a copy: the handler may write the register)
  memcpy(masks, warp.lanes<u32>(in.member_mask), sizeof masks);
  u32 todo = m, blocked = 0;
  while (todo) {
    int first = __builtin_ctz(todo);
    u32 members = masks[first], together = 0;
    if (members == ALL_LANES && todo == ALL_LANES) {
      bool same = true;
      for (int k = 0; k < 32; k++) same &= masks[k] == members;
      if (same) together = todo;
    }
    if (!together)
      for (int k = first; k < 32; k++)
        if ((todo >> k & 1) && masks[k] == members) together |= 1u << k;
    todo &= ~together;
    if (together & ~members)
      fail(warp, Kind::WARP_SYNC, warp.pc, __builtin_ctz(together & ~members), 0,
           "thread executes a .sync instruction but is not in its own member mask %08x", members);
    if ((members & warp.live) & ~together) {
      blocked |= together;
      continue;
    }
    if (in.whole_warp && together != ALL_LANES)
      fail(warp, Kind::WARP_SYNC, warp.pc, __builtin_ctz(together), 0,
           "whole-warp instruction executed by lanes %08x only", together);
    warp.mask = together;
    in.handler(warp, in);
  }
  if (!blocked) {
    next_instruction(warp);
    return;
  }
  int pc = warp.pc;
  warp.current = 0;
  push_group(warp, pc, blocked, true);
  if (m & ~blocked) push_group(warp, pc + 1, m & ~blocked, false);
  pick_group(warp);
}

// Lets the group with the highest pc run for a while, so that diverged lanes may wait for each other in loops.
class Fairness {
 public:
  // Returns true while the group runs that had its turn.
  bool step(Warp& warp) {
    if (warp.num_groups && ++since_ > PERIOD && !turn_) {
      since_ = 0;
      int best = -1;
      for (int k = 0; k < warp.num_groups; k++)
        if (!warp.groups[k].waiting && (best < 0 || warp.groups[k].pc > warp.groups[best].pc)) best = k;
      if (best >= 0) {
        LaneGroup group = warp.groups[best];
        warp.groups[best] = warp.groups[--warp.num_groups];
        push_group(warp, warp.pc, warp.current, false);
        warp.current = group.mask;
        warp.pc = group.pc;
        update_min_other_pc(warp);
        turn_ = TURN;
      }
    }
    if (!turn_) return false;
    turn_--;
    return true;
  }

 private:
  static constexpr u32 PERIOD = 20000, TURN = 2000;  // instructions
  u32 since_ = 0, turn_ = 0;
};

inline void run_warp(Warp& warp, u64 quantum) {
  Worker& worker = *warp.worker;
  const Instruction* code = worker.program->code.data();
  if (!warp.current && !pick_group(warp)) {
    warp.state = Warp::DONE;
    return;
  }
  Fairness fairness;
  u64 n = 0;
  for (;;) {
    if (!fairness.step(warp) && warp.pc >= warp.min_other_pc) {
      u32 lanes = warp.current;
      warp.current = 0;
      push_group(warp, warp.pc, lanes, false);
      pick_group(warp);
    }
    if (n >= quantum) break;
    n++;
    const Instruction& in = code[warp.pc];
    u32 m = warp.current;
    if (in.guard != NO_SLOT) m &= predicate(warp, in.guard);
    InstructionStats& stats = warp.stats[warp.pc];
    stats.warp_exec++;
    stats.thread_exec += __builtin_popcount(m);
    if (in.control == Control::NORMAL) {
      if (m) {
        warp.mask = m;
        in.handler(warp, in);
      }
      warp.pc++;
      continue;
    }
    if (in.control == Control::BRANCH_TABLE) {
      branch_by_table(warp, in, m);
      continue;
    }
    if (in.control == Control::YIELD) quantum = n;
    if (!m) {
      warp.pc++;
      continue;
    }
    switch (in.control) {
      case Control::BRANCH:
        branch(warp, in, m);
        break;
      case Control::EXIT:
        if (exit_lanes(warp, m)) {
          worker.instructions += n;
          check_barriers(*warp.block);
          return;
        }
        break;
      case Control::BLOCK_BARRIER:
        if (meet_at_barrier(warp, in, m)) {
          worker.instructions += n;
          return;
        }
        break;
      case Control::WARP_SYNC:
        sync_lanes(warp, in, m);
        break;
      case Control::YIELD:
        warp.mask = m;
        in.handler(warp, in);
        warp.pc++;
        break;
      case Control::TRAP:
        fail(warp, Kind::TRAP, warp.pc, __builtin_ctz(m), 0, "trap instruction");
      case Control::UNSUPPORTED:
        fail(warp, Kind::UNSUPPORTED, warp.pc, __builtin_ctz(m), 0, "not supported: %s",
             worker.program->unsupported[warp.pc].c_str());
      case Control::NORMAL:
      case Control::BRANCH_TABLE:
        break;
    }
  }
  worker.instructions += n;
}

}  // namespace ptxsim
