// Divergence. The lanes of a warp form groups by pc. The runnable group with the lowest pc runs,
// and groups that meet merge.
#pragma once
#include <string>

#include "engine/report.h"
#include "isa/warp_ops.h"

namespace ptxsim {

// The lowest pc at which the running group has to give way: it runs on past groups that wait behind it.
inline void update_min_other_pc(Warp& warp) {
  int m = INT32_MAX;
  for (int k = 0; k < warp.num_groups; k++) {
    const LaneGroup& g = warp.groups[k];
    if (g.waiting && g.pc < warp.pc) continue;
    if (g.pc < m) m = g.pc;
  }
  warp.min_other_pc = m;
}
inline void push_group(Warp& warp, int pc, u32 mask, bool waiting) {
  for (int k = 0; k < warp.num_groups; k++)
    if (warp.groups[k].pc == pc) {
      warp.groups[k].mask |= mask;
      warp.groups[k].waiting = waiting;
      return;
    }
  warp.groups[warp.num_groups++] = {pc, mask, waiting};
}
inline std::string describe_groups(Warp& warp) {
  std::string s;
  for (int k = 0; k < warp.num_groups; k++) {
    char b[64];
    snprintf(b, sizeof b, "%slanes %08x at instr #%d", k ? ", " : "", warp.groups[k].mask, warp.groups[k].pc);
    s += b;
    if (s.size() > 120) break;
  }
  return s;
}
// Lanes may meet at different __syncwarp instructions: if the waiting ones make up a whole mask, let them go
inline bool release_syncwarp(Warp& warp) {
  for (int q = 0; q < warp.num_groups; q++) {
    const Instruction& in = warp.worker->program->code[warp.groups[q].pc];
    if (in.handler != &op_syncwarp) continue;
    u32 M = warp.lanes<u32>(in.member_mask)[__builtin_ctz(warp.groups[q].mask)], got = 0;
    u32 take[32];
    for (int k = 0; k < warp.num_groups; k++) {
      take[k] = 0;
      const Instruction& other = warp.worker->program->code[warp.groups[k].pc];
      if (other.handler != &op_syncwarp) continue;
      for (int l = 0; l < 32; l++)
        if ((warp.groups[k].mask >> l & 1) && warp.lanes<u32>(other.member_mask)[l] == M) take[k] |= 1u << l;
      got |= take[k];
    }
    if ((M & warp.live) & ~got) continue;
    LaneGroup old[32];
    int n = warp.num_groups;
    memcpy(old, warp.groups, sizeof(LaneGroup) * n);
    warp.num_groups = 0;
    warp.epoch++;
    for (int k = 0; k < n; k++)
      if (old[k].mask & ~take[k]) push_group(warp, old[k].pc, old[k].mask & ~take[k], true);
    for (int k = 0; k < n; k++)
      if (take[k]) push_group(warp, old[k].pc + 1, take[k], false);
    return true;
  }
  return false;
}
// Chooses the runnable group with the lowest pc (warp.current must be 0); false: none left
inline bool pick_group(Warp& warp) {
  int best = -1;
  for (int k = 0; k < warp.num_groups; k++)
    if (!warp.groups[k].waiting && (best < 0 || warp.groups[k].pc < warp.groups[best].pc)) best = k;
  if (best < 0) {
    if (warp.num_groups == 0) return false;
    if (release_syncwarp(warp)) return pick_group(warp);
    const LaneGroup& g = warp.groups[0];
    const Instruction& in = warp.worker->program->code[g.pc];
    int l = __builtin_ctz(g.mask);
    if (in.control == Control::BLOCK_BARRIER)
      fail(warp, Kind::BARRIER, g.pc, l, 0, "barrier divergence inside warp %d: %s", warp.id,
           describe_groups(warp).c_str());
    fail(warp, Kind::WARP_SYNC, g.pc, l, 0,
         "warp-synchronous instruction never reached by all lanes of its mask, warp %d: %s", warp.id,
         describe_groups(warp).c_str());
  }
  warp.current = warp.groups[best].mask;
  warp.pc = warp.groups[best].pc;
  warp.groups[best] = warp.groups[--warp.num_groups];
  update_min_other_pc(warp);
  return true;
}
inline void wake_groups(Warp& warp) {
  for (int k = 0; k < warp.num_groups; k++) warp.groups[k].waiting = false;
}

}  // namespace ptxsim
