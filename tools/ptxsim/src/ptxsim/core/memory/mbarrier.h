// mbarrier objects, and the bulk copies that complete on them. An arrival releases, a successful wait acquires.
// Bulk copies land as late as the waits allow.
#pragma once
#include "memory/async.h"

namespace ptxsim {

inline u64 address_at(Warp& warp, int off, int width, i64 imm, int l) {
  return off == NO_SLOT ? (u64)imm
         : width == 8   ? warp.lanes<u64>(off)[l] + imm
                        : (u64)(u32)(warp.lanes<u32>(off)[l] + (u32)imm);
}
// The offset of a shared address, generic or not.
inline u32 shared_offset(u64 a) { return (u32)(a - SHARED_WINDOW < WINDOW_SIZE ? a - SHARED_WINDOW : a); }
inline MemoryBarrier& mbarrier_at(Warp& warp, const Instruction& in, int l, u32 a) {
  if (a & 7) report(warp, Kind::MISALIGNED, in.pc, -1, l, a, "misaligned mbarrier");
  auto it = warp.block->mbarriers.find(a);
  if (it == warp.block->mbarriers.end())
    fail(warp, Kind::OTHER, in.pc, l, a, "mbarrier at shared offset %u was not initialised", a);
  return it->second;
}
// Ends the phase if all arrivals and bytes are there. land: first deliver the copies, because a thread waits.
inline void advance_phase(Block& block, MemoryBarrier& m, bool land) {
  if (land && m.pending == 0 && !m.copies.empty()) {
    for (auto& o : m.copies) {
      memcpy(block.shared.data() + o.dst, o.data.data(), o.size);
      memset(&block.shared_state[o.dst], SharedState::INITIALISED, o.size);
      m.bytes -= o.size;
    }
    m.copies.clear();
  }
  if (m.pending == 0 && m.bytes == 0 && m.copies.empty()) {
    m.phase++;
    m.pending = m.expected;
    memcpy(m.released, m.clock, sizeof m.clock);
  }
}
inline void op_mbarrier(Warp& warp, const Instruction& in) {
  Block& block = *warp.block;
  u32 done = 0;
  for (int l = 0; l < 32; l++)
    if (warp.mask >> l & 1) {
      u32 a = shared_offset(address_at(warp, in.src0, in.address_width, in.immediate, l));
      if ((u64)a + 8 > block.launch->shared_size)
        fail(warp, Kind::OUT_OF_BOUNDS, in.pc, l, a, "mbarrier out of shared memory");
      u32 v = in.src1 != NO_SLOT && in.operation != MbarrierOp::TEST ? warp.lanes<u32>(in.src1)[l] : 1;
      if (in.operation == MbarrierOp::INIT) {
        if (!v || v > (1u << 20) - 1)
          fail(warp, Kind::OTHER, in.pc, l, a, "mbarrier is initialised with a count of %u. Pass 1 to 1048575", v);
        for (int k = 0; k < 8; k++) {
          if (block.shared_state[a + k] & SharedState::RED_ZONE)
            fail(warp, Kind::OUT_OF_BOUNDS, in.pc, l, a, "mbarrier in a red zone");
          block.shared_state[a + k] = SharedState::INITIALISED;
        }
        MemoryBarrier m;
        m.expected = m.pending = v;
        block.mbarriers[a] = m;
        continue;
      }
      MemoryBarrier& m = mbarrier_at(warp, in, l, a);
      switch (in.operation) {
        case MbarrierOp::INVAL:
          block.mbarriers.erase(a);
          break;
        case MbarrierOp::EXPECT:
          m.bytes += v;
          break;
        case MbarrierOp::COMPLETE:
          m.bytes -= v;
          advance_phase(block, m, false);
          break;
        case MbarrierOp::COPY_ARRIVE:
          if (!warp.pending_copies.empty()) land_copies(warp, 1u << l, 0, true);
          join_clock(m.clock, warp.clock, block.num_warps);
          if (!in.mbarrier.no_increment) break;
          [[fallthrough]];
        case MbarrierOp::ARRIVE:
        case MbarrierOp::ARRIVE_TX:
        case MbarrierOp::DROP: {
          if (in.operation == MbarrierOp::ARRIVE_TX) {
            m.bytes += v;
            v = 1;
          }
          if (in.dst != NO_SLOT) warp.lanes<u64>(in.dst)[l] = m.phase;
          if (in.operation == MbarrierOp::DROP) m.expected -= v;
          if (v > m.pending)
            fail(warp, Kind::BARRIER, in.pc, l, a, "mbarrier: more arrivals than its count of %u", m.expected);
          m.pending -= v;
          join_clock(m.clock, warp.clock, block.num_warps);
          advance_phase(block, m, false);
          break;
        }
        default: {
          advance_phase(block, m, true);
          u64 want = in.operation == MbarrierOp::TEST ? warp.lanes<u64>(in.src1)[l] : 0;
          bool ok = in.operation == MbarrierOp::TEST ? m.phase > (u32)want : ((m.phase & 1) != (v & 1));
          if (ok) {
            done |= 1u << l;
            join_clock(warp.clock, m.released, block.num_warps);
            warp.epoch++;
          }
        }
      }
    }
  if (in.operation == MbarrierOp::ARRIVE || in.operation == MbarrierOp::ARRIVE_TX || in.operation == MbarrierOp::DROP ||
      in.operation == MbarrierOp::COPY_ARRIVE)
    warp.clock[warp.id]++;
  if (in.operation == MbarrierOp::TEST || in.operation == MbarrierOp::PARITY) set_predicate(warp, in.pred_dst, done);
}
// cp.async.bulk, from global to shared memory or back. slots: (slot, width, offset) of the source and the mbarrier.
inline void op_bulk(Warp& warp, const Instruction& in) {
  Block& block = *warp.block;
  const int* x = warp.slots(in);
  for (int l = 0; l < 32; l++)
    if (warp.mask >> l & 1) {
      u64 d = address_at(warp, in.src0, in.address_width, in.immediate, l), s = address_at(warp, x[0], x[1], x[2], l);
      u32 n = warp.lanes<u32>(in.src1)[l];
      u64 g = in.bulk.to_global ? d : s;
      u32 h = shared_offset(in.bulk.to_global ? s : d);
      if (!n || n % 16) fail(warp, Kind::MISALIGNED, in.pc, l, g, "cp.async.bulk size %u is not a multiple of 16", n);
      if ((g & 15) || (h & 15))
        fail(warp, Kind::MISALIGNED, in.pc, l, g & 15 ? g : h, "cp.async.bulk address is not a multiple of 16");
      const Allocation* A = find_allocation(block.launch, g);
      if (!A || g + n > A->base + A->size) fail_out_of_bounds(warp, in, l, g, (int)n, in.bulk.to_global);
      if (in.bulk.to_global && (A->flags & Allocation::READ_ONLY))
        fail(warp, Kind::READ_ONLY, in.pc, l, g, "write to read-only memory (a constant, or a buffer passed as const)");
      if ((u64)h + n > block.launch->shared_size)
        fail(warp, Kind::OUT_OF_BOUNDS, in.pc, l, h, "cp.async.bulk of %u bytes at shared offset %u: out of bounds", n,
             h);
      for (u32 k = 0; k < n; k += 16)
        check_shared_state(warp, in, l, h + k, 16, in.bulk.to_global ? Access::READ : Access::ASYNC);
      if (block.launch->metrics) {
        InstructionStats& st = warp.stats[in.pc];
        st.accesses++;
        st.bytes += n;
        u64 sec = ((g + n - 1) >> 5) - (g >> 5) + 1;
        st.sectors += sec;
        st.min_sectors += (n + 31) / 32;
      }
      u8* gp = A->host + (g - A->base);
      if (in.bulk.to_global) {
        memcpy(gp, block.shared.data() + h, n);
        continue;
      }
      MemoryBarrier& m = mbarrier_at(warp, in, l, shared_offset(address_at(warp, x[3], x[4], x[5], l)));
      BulkCopy o{h, n, std::vector<u8>(gp, gp + n)};
      join_clock(m.clock, warp.clock, block.num_warps);
      m.copies.push_back(std::move(o));
    }
  warp.clock[warp.id]++;
}

}  // namespace ptxsim
