// Runs the blocks of a launch on worker threads, and sums what they counted.
#pragma once
#include <algorithm>
#include <memory>
#include <thread>
#include <vector>

#include "engine/block.h"

namespace ptxsim {

class Launch {
 public:
  Launch(const Program& program, LaunchConfig& config)
      : program_(program),
        config_(config),
        num_blocks_(u64(config.grid[0]) * config.grid[1] * config.grid[2]),
        workers_(std::max(1, config.workers)) {
    for (size_t k = 0; k < workers_.size(); k++) {
      workers_[k].program = &program;
      workers_[k].launch = &config;
      workers_[k].stats.resize(program.code.size());
      workers_[k].rng = config.seed * 2654435769u + 88172645463325252ull + k;
    }
  }
  void run() {
    g_instructions = 0;
    g_stop = false;
    config_.failed = 0;
    if (workers_.size() == 1)
      run_blocks(workers_[0]);
    else {
      std::vector<std::thread> threads;
      for (Worker& worker : workers_) threads.emplace_back([&] { run_blocks(worker); });
      for (std::thread& thread : threads) thread.join();
    }
    collect();
  }

 private:
  void run_blocks(Worker& worker) {
    try {
      if (config_.resident > 1)
        run_side_by_side(worker);
      else
        run_in_order(worker);
    } catch (const SimError& e) {
      std::lock_guard guard(error_lock_);
      if (!config_.failed) {
        config_.failed = 1;
        config_.error = e.finding;
      }
      g_stop = true;
    }
  }
  bool start_next(Block& block, Worker& worker) {
    u64 linear = next_.fetch_add(1);
    if (linear >= num_blocks_) return false;
    start_block(block, linear, program_, &config_, &worker);
    return true;
  }
  void run_in_order(Worker& worker) {
    Block block;
    while (!g_stop && start_next(block, worker))
      while (!turn(block, worker))
        if (g_stop) return;
  }
  // Blocks that wait for each other have to be resident together. Each has a turn in every round.
  void run_side_by_side(Worker& worker) {
    std::vector<std::unique_ptr<Block>> blocks;
    while (!g_stop) {
      while (int(blocks.size()) < config_.resident) {
        auto block = std::make_unique<Block>();
        if (!start_next(*block, worker)) break;
        blocks.push_back(std::move(block));
      }
      if (blocks.empty()) return;
      std::erase_if(blocks, [&](auto& block) { return turn(*block, worker); });
    }
  }
  void collect() {
    memset(config_.stats, 0, sizeof(InstructionStats) * program_.code.size());
    std::map<std::array<int, 3>, Finding> findings;
    std::string output;
    config_.warp_instructions = 0;
    for (const Worker& worker : workers_) {
      for (size_t k = 0; k < program_.code.size(); k++) {
        InstructionStats& sum = config_.stats[k];
        const InstructionStats& part = worker.stats[k];
        sum.warp_exec += part.warp_exec;
        sum.thread_exec += part.thread_exec;
        sum.divergent += part.divergent;
        sum.accesses += part.accesses;
        sum.bytes += part.bytes;
        sum.sectors += part.sectors;
        sum.min_sectors += part.min_sectors;
        sum.wavefronts += part.wavefronts;
        sum.min_wavefronts += part.min_wavefronts;
        sum.max_degree = std::max(sum.max_degree, part.max_degree);
      }
      for (const auto& [key, finding] : worker.findings)
        if (auto [it, fresh] = findings.try_emplace(key, finding); !fresh) it->second.count += finding.count;
      output += worker.output;
      config_.warp_instructions += worker.instructions;
    }
    config_.num_findings = 0;
    for (const auto& [key, finding] : findings)
      if (config_.num_findings < config_.max_findings) config_.findings[config_.num_findings++] = finding;
    config_.output_size = std::min<u64>(output.size(), config_.output_capacity);
    if (config_.output_size) memcpy(config_.output, output.data(), config_.output_size);
  }

  const Program& program_;
  LaunchConfig& config_;
  u64 num_blocks_;
  std::atomic<u64> next_{0};
  std::vector<Worker> workers_;
  std::mutex error_lock_;
};

}  // namespace ptxsim
