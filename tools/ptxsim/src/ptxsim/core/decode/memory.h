// Rows of the decode table: loads, stores, atomics, asynchronous copies, mbarriers.
#pragma once
#include "decode/table.h"
#include "isa/atomics.h"
#include "memory/access.h"
#include "memory/mbarrier.h"

namespace ptxsim {

// Elements in memory of a load, store or atomic.
inline void read_elements(Decoder& d, const char* too_wide) {
  d.in.space = d.space();
  d.in.vector = d.vector_length();
  d.in.size = size_of(d.last_type());
  if (d.in.size == 16) Decoder::reject(too_wide);
}
// Registers of a load or store. They may be wider than the elements.
inline void read_element_registers(Decoder& d, size_t k, bool destinations) {
  int width = 0;
  std::vector<Operand> registers = d.vector_of(k);
  for (const Operand& q : registers) width = d.width_of(q, width);
  if (!width) width = std::max<int>(2, d.in.size);
  std::vector<int> list;
  d.append_registers(list, k, width, destinations);
  if (list.size() != d.in.vector) Decoder::reject("vector size");
  d.in.reg_width = width;
  d.slot_list(list);
}
inline void decode_atomic(Decoder& d, bool returns) {
  d.in.operation = d.atomic_operation();
  read_elements(d, "128-bit atomic");
  size_t address = returns ? 1 : 0;
  std::vector<Operand> sources = d.vector_of(address + 1), results;
  if (returns) results = d.vector_of(0);
  if (sources.size() != d.in.vector || (returns && results.size() != d.in.vector)) Decoder::reject("vector size");
  std::vector<int> list;  // (result or NO_SLOT, source) of every element
  for (int k = 0; k < d.in.vector; k++) {
    bool kept = returns && results[k].kind == OperandKind::REG;
    list.push_back(kept ? d.destination(results[k], d.in.size) : NO_SLOT);
    list.push_back(d.source(sources[k], d.in.size));
  }
  d.in.reg_width = d.in.size;
  d.slot_list(list);
  d.address(address);
  if (d.in.operation == AtomicOp::CAS) d.in.src2 = d.source(address + 2, d.in.size);
}
inline void add_accesses(Table& t) {
  for (const char* name : {"ld", "ldu"})
    t.add(name, &op_ld, {}, [](Decoder& d) {
      read_elements(d, "128-bit type");
      d.in.is_signed = is_signed(d.last_type());
      read_element_registers(d, 0, true);
      d.address(1);
    });
  t.reject("st.async", "st.async");
  t.reject("st.bulk", "st.async");
  t.add("st", &op_st, {}, [](Decoder& d) {
    read_elements(d, "128-bit type");
    read_element_registers(d, 1, false);
    d.address(0);
  });
  t.reject("red.async", "red.async");
  t.add("atom", &op_atom, {}, [](Decoder& d) { decode_atomic(d, true); });
  t.add("red", &op_atom, {}, [](Decoder& d) { decode_atomic(d, false); });
}

inline void decode_async_copy(Decoder& d) {  // cp.async [dst], [src], size{, src-size or ignore-src}{, cache-policy}
  Instruction& in = d.in;
  in.space = Space::SHARED;
  d.address(0);
  const Operand& source = d.operand(1);
  if (source.kind != OperandKind::MEM) Decoder::reject("cp.async source");
  if (source.detail != int(source.detail)) Decoder::reject("cp.async symbol source");
  in.copy = {source.value < 0 ? NO_SLOT : d.program.reg_slot[source.value], int(source.detail),
             source.value < 0 ? u8(0) : d.program.reg_width[source.value]};
  in.size = u8(d.operand(2).value);
  if (in.size != 4 && in.size != 8 && in.size != 16) Decoder::reject("cp.async size");
  if (d.has("cg") && in.size != 16) Decoder::reject("cp.async.cg size");
  if (d.operands.size() <= 3) return;
  const Operand& last = d.operand(3);
  bool cache_policy = d.operands.size() == 4 && d.has("cache_hint") && d.width_of(last, 0) == 8;
  if (last.kind == OperandKind::PRED)
    in.pred_c = d.pred(last);
  else if (!cache_policy)
    in.src2 = d.source(last, 4);
}
inline void decode_bulk_copy(Decoder& d) {  // cp.async.bulk [dst], [src], size{, [mbarrier]}
  d.in.bulk = {d.parts.at(3) == "global"};
  d.address(0);
  std::vector<int> list;
  auto append = [&](const Operand& q) {
    if (q.detail != int(q.detail)) Decoder::reject("bulk copy symbol address");
    list.push_back(q.value < 0 ? NO_SLOT : d.program.reg_slot[q.value]);
    list.push_back(q.value < 0 ? 8 : d.program.reg_width[q.value]);
    list.push_back(int(q.detail));
  };
  if (d.operand(1).kind != OperandKind::MEM) Decoder::reject("bulk source");
  append(d.operand(1));
  d.in.src1 = d.source(2, 4);
  if (!d.in.bulk.to_global) {
    if (d.operands.size() < 4 || d.operand(3).kind != OperandKind::MEM || !d.has("mbarrier::complete_tx::bytes"))
      Decoder::reject("bulk copy without mbarrier");
    append(d.operand(3));
  }
  d.slot_list(list);
}
inline void add_copies(Table& t) {
  for (const char* pattern : {"cp.async.bulk.prefetch", "cp.async.bulk.commit_group", "cp.async.bulk.wait_group"})
    t.add(pattern, &op_nop, {});
  for (const char* pattern : {"cp.async.bulk.tensor", "cp.async.bulk.multicast::cluster", "cp.async.bulk.reduce"})
    t.reject(pattern, "tensor / multicast / reducing bulk copy");
  t.add("cp.async.bulk", &op_bulk, {}, decode_bulk_copy);
  t.add("cp.async.commit_group", &op_cpcommit, {});
  t.add("cp.async.wait_group", &op_cpwait, {}, [](Decoder& d) { d.in.immediate = d.operand(0).value; });
  t.add("cp.async.wait_all", &op_cpwait, {}, [](Decoder& d) { d.in.operation = WAIT_ALL; });
  t.add("cp.async", &op_cpasync, {}, decode_async_copy);
}

inline void add_mbarriers(Table& t) {
  using namespace slots;
  auto operation = [](u8 op) {
    return [op](Decoder& d) {
      d.in.operation = op;
      bool remote = d.has("cluster") || d.has("shared::cluster");
      if (remote && !d.has("arrive") && !d.has("shared::cta")) Decoder::reject("mbarrier of another block");
    };
  };
  t.add("cp.mbarrier.arrive", &op_mbarrier, {address}, [](Decoder& d) {
    d.in.operation = MbarrierOp::COPY_ARRIVE;
    d.in.mbarrier = {d.has("noinc")};
  });
  t.add("mbarrier.init", &op_mbarrier, {address, src1(4)}, operation(MbarrierOp::INIT));
  t.add("mbarrier.inval", &op_mbarrier, {address}, operation(MbarrierOp::INVAL));
  auto decode_arrival = [operation](u8 op) {
    return [=](Decoder& d) {  // {state,} [address]{, count}
      operation(op)(d);
      size_t k = d.operand(0).kind == OperandKind::MEM ? 0 : 1;
      if (d.operand(0).kind == OperandKind::REG) d.in.dst = d.destination(0, 8);
      d.address(k);
      if (d.operands.size() > k + 1) d.in.src1 = d.source(k + 1, 4);
    };
  };
  t.add("mbarrier.arrive_drop", &op_mbarrier, {}, decode_arrival(MbarrierOp::DROP));
  t.add("mbarrier.arrive.expect_tx", &op_mbarrier, {}, decode_arrival(MbarrierOp::ARRIVE_TX));
  t.add("mbarrier.arrive", &op_mbarrier, {}, decode_arrival(MbarrierOp::ARRIVE));
  t.add("mbarrier.expect_tx", &op_mbarrier, {address, src1(4)}, operation(MbarrierOp::EXPECT));
  t.add("mbarrier.complete_tx", &op_mbarrier, {address, src1(4)}, operation(MbarrierOp::COMPLETE));
  for (const std::string name : {"mbarrier.test_wait", "mbarrier.try_wait"}) {
    t.add(name + ".parity", &op_mbarrier, {pred_dst, address, src1(4)}, operation(MbarrierOp::PARITY), Control::YIELD);
    t.add(name, &op_mbarrier, {pred_dst, address, src1(8)}, operation(MbarrierOp::TEST), Control::YIELD);
  }
  t.reject("mbarrier", "mbarrier operation");
}

}  // namespace ptxsim
