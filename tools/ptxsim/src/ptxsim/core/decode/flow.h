// Rows of the decode table: control flow, barriers, communication between lanes.
#pragma once
#include "decode/table.h"
#include "isa/print.h"
#include "isa/warp_ops.h"

namespace ptxsim {

inline void add_control_flow(Table& t) {
  using namespace slots;
  t.add(
      "bra", nullptr, {},
      [](Decoder& d) {
        if (d.operands.empty() || d.operand(0).kind != OperandKind::LABEL) Decoder::reject("branch target");
        d.in.target = int(d.operand(0).value);
      },
      Control::BRANCH);
  t.add(
      "brx", nullptr, {src0(4)},
      [](Decoder& d) {
        std::vector<int> targets;
        for (const Operand& q : d.operand(1).parts) targets.push_back(int(q.value));
        d.slot_list(targets);
      },
      Control::BRANCH_TABLE);
  t.add("exit", nullptr, {}, nullptr, Control::EXIT);
  t.add("ret", nullptr, {}, nullptr, Control::EXIT);
  t.add("trap", nullptr, {}, nullptr, Control::TRAP);
  t.add("nanosleep", &op_nop, {}, nullptr, Control::YIELD);
  // what parser.py makes of calls of vprintf and __assertfail
  t.add("psprintf", &op_printf, {src0(8), src1(8)});
  t.add("psassert", &op_assert, {src0(8), src1(8), src2(4)});
  for (const char* name : {"membar", "fence", "prefetch", "prefetchu", "griddepcontrol", "discard", "applypriority",
                           "setmaxnreg", "pmevent", "brkpt"})
    t.add(name, &op_nop, {});
}

inline void decode_barrier(Decoder& d, u8 operation, size_t id) {  // operand id: the barrier, then the thread count
  d.in.operation = operation;
  d.in.barrier = {BarrierSpec::NONE, false};
  d.in.src0 = d.operands.size() > id ? d.source(id, 4) : d.constant(0, 4);
}
inline void add_barriers(Table& t) {
  using namespace slots;
  for (const std::string name : {"bar", "barrier"}) {
    t.add(name + ".warp", &op_syncwarp, {member_mask}, nullptr, Control::WARP_SYNC);
    if (name == "barrier") {
      // A cluster has one block: the wait is a barrier of the block with a number of its own, the arrival needs
      // nothing.
      t.add(
          "barrier.cluster.wait", &op_nop, {},
          [](Decoder& d) {
            d.in.barrier = {BarrierSpec::NONE, true};
            d.in.src0 = d.constant(CLUSTER_BARRIER, 4);
          },
          Control::BLOCK_BARRIER);
      t.add("barrier.cluster", &op_nop, {});
    }
    t.add(
        name + ".red", &op_nop, {},
        [](Decoder& d) {  // d, barrier{, count}, p
          decode_barrier(d, BarrierOp::REDUCE, 1);
          d.in.barrier.reduction =
              d.choose<u8>({{"popc", BarrierSpec::COUNT}, {"and", BarrierSpec::ALL}}, BarrierSpec::ANY);
          if (d.in.barrier.reduction == BarrierSpec::COUNT)
            d.in.dst = d.destination(0, 4);
          else
            d.in.pred_dst = d.pred(0);
          d.in.pred_c = d.pred(d.operands.back());
          if (d.operands.size() == 4) d.in.src1 = d.source(2, 4);
        },
        Control::BLOCK_BARRIER);
    auto plain = [](u8 operation) {
      return [operation](Decoder& d) {
        decode_barrier(d, operation, 0);
        if (d.operands.size() > 1) d.in.src1 = d.source(1, 4);
      };
    };
    t.add(name + ".arrive", &op_nop, {}, plain(BarrierOp::ARRIVE), Control::BLOCK_BARRIER);
    t.add(name, &op_nop, {}, plain(BarrierOp::SYNC), Control::BLOCK_BARRIER);
  }
}

inline void add_lane_communication(Table& t) {
  using namespace slots;
  t.add(
      "shfl.sync", &op_shfl, {dst_pred(4), src0(4), src1(4), src2(4), member_mask},
      [](Decoder& d) {
        d.in.operation =
            d.choose<u8>({{"up", Shuffle::UP}, {"down", Shuffle::DOWN}, {"bfly", Shuffle::BFLY}}, Shuffle::IDX);
      },
      Control::WARP_SYNC);
  t.reject("shfl", "shfl without sync");
  auto vote = [](u8 operation) { return [operation](Decoder& d) { d.in.operation = operation; }; };
  t.add("vote.sync.all", &op_vote, {pred_dst, pred_a, member_mask}, vote(Vote::ALL), Control::WARP_SYNC);
  t.add("vote.sync.any", &op_vote, {pred_dst, pred_a, member_mask}, vote(Vote::ANY), Control::WARP_SYNC);
  t.add("vote.sync.uni", &op_vote, {pred_dst, pred_a, member_mask}, vote(Vote::UNI), Control::WARP_SYNC);
  t.add("vote.sync", &op_vote, {dst(4), pred_a, member_mask}, vote(Vote::BALLOT), Control::WARP_SYNC);
  t.reject("vote", "vote without sync");
  t.add(
      "match", &op_match, {dst_pred(4), src0(), member_mask},
      [](Decoder& d) {
        d.in.size = size_of(d.last_type());
        d.in.operation = d.has("all") ? MATCH_ALL : MATCH_ANY;
      },
      Control::WARP_SYNC);
  t.add(
      "redux", &op_redux, {dst(4), src0(4), member_mask}, [](Decoder& d) { d.in.operation = d.atomic_operation(); },
      Control::WARP_SYNC);
  t.add("activemask", &op_activemask, {dst(4)});
  t.add(
      "elect", &op_elect, {skip, member_mask},
      [](Decoder& d) {
        const Operand& result = d.operand(0);
        if (result.kind != OperandKind::PAIR) Decoder::reject("elect");
        if (result.parts[0].kind != OperandKind::SINK) d.in.dst = d.destination(result.parts[0], 4);
        d.in.pred_dst = d.pred(result.parts[1]);
      },
      Control::WARP_SYNC);
}

}  // namespace ptxsim
