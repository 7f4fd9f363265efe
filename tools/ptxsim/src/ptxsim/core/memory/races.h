// Races in shared memory, as FastTrack finds them: one Shadow for every granule, vector clocks of the warps.
#pragma once
#include "engine/report.h"

namespace ptxsim {

inline void report_race(Warp& warp, const Instruction& in, int l, u64 a, const char* what, int other_pc, int other) {
  report(warp, Kind::RACE, in.pc, other_pc, l, a, "shared-memory race: %s, warps %d and %d, no barrier between", what,
         other, warp.id);
}
inline void report_warp_race(Warp& warp, const Instruction& in, int l, u64 a, int other_pc, int other_lane,
                             const char* what) {
  report(warp, Kind::WARP_RACE, in.pc, other_pc, l, a, "%s by lanes %d and %d of one warp, no __syncwarp between", what,
         other_lane, l);
}
inline void check_race_of_read(Warp& warp, const Instruction& in, int l, u64 a, Shadow& s) {
  u32 me = warp.id;
  if (warp.block->launch->race > 1) {
    if (s.write_clock && s.write_warp == me && s.write_epoch == warp.epoch && s.write_lane != l)
      report_warp_race(warp, in, l, a, s.write_pc, s.write_lane, "shared write and read");
    if (s.read_epoch == warp.epoch && s.read_warp == me && s.read_lane != l)
      s.read_lane = Shadow::MANY_LANES;
    else
      s.read_lane = l;
    s.read_epoch = warp.epoch;
  }
  if (s.write_clock && s.write_warp != me && s.write_clock > warp.clock[s.write_warp])
    report_race(warp, in, l, a, "read after unordered write", s.write_pc, s.write_warp);
  if (s.read_warp == Shadow::MANY_WARPS) {
    warp.block->reader_clocks[s.read_clock][me] = warp.clock[me];
    s.read_pc = in.pc;
    return;
  }
  if (!s.read_clock || s.read_warp == me || s.read_clock <= warp.clock[s.read_warp]) {
    s.read_warp = me;
    s.read_clock = warp.clock[me];
    s.read_pc = in.pc;
    return;
  }
  std::array<u32, MAX_WARPS> v;
  v.fill(0);
  v[s.read_warp] = s.read_clock;
  v[me] = warp.clock[me];
  warp.block->reader_clocks.push_back(v);
  s.read_clock = (u32)warp.block->reader_clocks.size() - 1;
  s.read_warp = Shadow::MANY_WARPS;
  s.read_pc = in.pc;
}
inline void check_race_of_write(Warp& warp, const Instruction& in, int l, u64 a, Shadow& s, bool atom) {
  u32 me = warp.id;
  if (warp.block->launch->race > 1) {
    if (s.write_clock && s.write_warp == me && s.write_epoch == warp.epoch && s.write_lane != l &&
        !(atom && s.write_atomic) && (int)s.write_pc != in.pc)
      report_warp_race(warp, in, l, a, s.write_pc, s.write_lane, "two shared writes");
    if (s.read_clock && s.read_warp == me && s.read_epoch == warp.epoch && s.read_lane != l)
      report_warp_race(warp, in, l, a, s.read_pc, s.read_lane, "shared read and write");
    s.write_lane = l;
    s.write_epoch = warp.epoch;
    s.read_epoch = 0;
  }
  if (s.write_clock && s.write_warp != me && s.write_clock > warp.clock[s.write_warp] && !(atom && s.write_atomic))
    report_race(warp, in, l, a, "two unordered writes", s.write_pc, s.write_warp);
  if (s.read_warp == Shadow::MANY_WARPS) {
    auto& v = warp.block->reader_clocks[s.read_clock];
    for (int k = 0; k < warp.block->num_warps; k++)
      if (k != (int)me && v[k] > warp.clock[k]) {
        report_race(warp, in, l, a, "write after unordered read", s.read_pc, k);
        break;
      }
    s.read_warp = 0;
    s.read_clock = 0;
  } else if (s.read_clock && s.read_warp != me && s.read_clock > warp.clock[s.read_warp])
    report_race(warp, in, l, a, "write after unordered read", s.read_pc, s.read_warp);
  s.write_warp = me;
  s.write_clock = warp.clock[me];
  s.write_pc = in.pc;
  s.write_atomic = atom;
  s.read_clock = 0;
  s.read_warp = 0;
}

}  // namespace ptxsim
