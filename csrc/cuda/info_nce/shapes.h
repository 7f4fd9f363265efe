// How the tensor-core kernels of info_nce cut their work: one table. It makes the kernels, and the tests' and the
// benchmarks' cases are read from its rows (tests/helpers/simulated.py).
//
// To change a shape, change its row and run `python -m benchmarks.cuda_static --update`. To try one without touching
// the table, build with -DMASKCO_FLASH_SHAPE=2:128:8x1x64x1 (bytes of an element : channels : the shape's four
// numbers). GPUs on which it does not fit keep the table's. `python -m benchmarks.flash_shapes` builds and times
// several.
#pragma once

namespace maskco {

// A warp's rows share each fragment of columns that it loads from shared memory, so more rows a warp are faster, until
// their sums (rows · C / 32 registers a thread, of 255) leave no room for anything else. A tile's columns share each
// fragment of rows in the same way.
struct FlashShape {
  int warps;
  int row_blocks;     // of 16 rows, a warp
  int columns;        // of a tile
  int blocks_per_sm;  // that there must be registers for, and is shared memory for

  constexpr int rows() const { return 16 * warps * row_blocks; }
};

// GPUs differ in the shared memory that they allow a block. Only the host asks what a GPU is: the shape is part of the
// kernel's type, so that a launch fits the code that runs, whatever that was compiled for.
enum class FlashGpu { kSmall, kLarge };
constexpr int flash_shared_limit(FlashGpu gpu) {
  return gpu == FlashGpu::kLarge ? 163 * 1024  // of compute capability 8.0, 8.7, 9.0, 10.0
                                 : 99 * 1024;  // 8.6, 8.9, 12.0, and all others from 8.0 on
}

struct FlashEntry {
  int element_size;  // bytes: 2 for float16 and bfloat16, 4 for float32 (products of one TF32 and of three alike)
  int channels;
  FlashShape small, large;
};

// Eight warps an SM are planned, the most that 255 registers a thread allow. None of this was timed yet: what was tried
// was judged by ptxas (registers, spills) and by the shared memory.
constexpr FlashEntry kFlashTable[] = {
    // Registers: 32 for sums, 168 in all let twelve warps on an SM. 64 columns were tried: 64 for logits, not 32.
    {2, 32, {4, 2, 32, 3}, {4, 2, 32, 3}},
    // Registers: 64 for sums, up to 245 in all. 64 columns were tried: 64 for logits, not 32.
    {2, 64, {4, 2, 32, 2}, {4, 2, 32, 2}},
    // Registers: 96 for sums, up to 244 in all.
    {2, 96, {4, 2, 32, 2}, {4, 2, 32, 2}},
    // Registers: 128 for sums, up to 255 in all. Shared memory: 49 KiB, so two blocks just fit on an SM of 100 KiB.
    {2, 128, {4, 2, 32, 2}, {4, 2, 32, 2}},
    // Registers: two blocks of rows would need 192 for sums alone. Shared memory: 98 of 99 KiB.
    {2, 192, {8, 1, 64, 1}, {8, 1, 64, 1}},
    // Registers: 128 for sums, up to 255 in all. Shared memory: 97 KiB with 32 columns, 130 with 64.
    {2, 256, {8, 1, 32, 1}, {8, 1, 64, 1}},
    // Registers: up to 243 in all. A third block on an SM was tried: 168 registers do not suffice.
    {4, 32, {4, 2, 32, 2}, {4, 2, 32, 2}},
    // Registers: 64 for sums, up to 249 in all. Shared memory: 49 KiB, so two blocks just fit on an SM of 100 KiB.
    {4, 64, {4, 2, 32, 2}, {4, 2, 32, 2}},
    // Shared memory: 73 KiB, one block on an SM of 100 KiB: so eight warps of 16 rows, not four of 32.
    {4, 96, {8, 1, 32, 1}, {8, 1, 32, 1}},
    // Shared memory: 97 KiB with 32 columns, 130 with 64. Registers: up to 255 with 64 columns.
    {4, 128, {8, 1, 32, 1}, {8, 1, 64, 1}},
    // Shared memory: 97 KiB with four warps, 145 with eight. 16 columns and two blocks an SM were tried.
    {4, 192, {4, 1, 32, 1}, {8, 1, 32, 1}},
    // Shared memory: 97 KiB with four warps, 161 of 163 with eight. Registers: up to 254.
    {4, 256, {4, 1, 16, 1}, {8, 1, 16, 1}},
};
constexpr int kFlashEntries = sizeof(kFlashTable) / sizeof(FlashEntry);

constexpr int kFlashStages = 2;   // tiles of columns in shared memory: one in use, the next on its way
constexpr int kMaxSplits = 1024;  // of the columns: shared memory of the kernel that merges them has a number for each

// Shared memory of a block with ids, in bytes: the rows, the tiles of columns, and what is kept of each row or column.
constexpr int flash_shared_bytes(int element_size, int channels, FlashShape shape) {
  const int tiles = (shape.rows() + kFlashStages * shape.columns) * channels * element_size;
  const int forward = 4 * shape.rows() + 8 * kFlashStages * shape.columns, keys = 16 * kFlashStages * shape.columns;
  return (tiles + (forward > keys ? forward : keys) + 127) / 128 * 128;
}

#ifdef MASKCO_FLASH_SHAPE
constexpr int trial_number(int index) {  // of the six in the text
  int value = 0;
  for (const char* text = MASKCO_FLASH_SHAPE; *text; text++) {
    const bool digit = *text >= '0' && *text <= '9';
    if (!digit) index--;
    if (digit && index == 0) value = 10 * value + (*text - '0');
  }
  return value;
}
constexpr FlashEntry kTrial{
    trial_number(0), trial_number(1), {trial_number(2), trial_number(3), trial_number(4), trial_number(5)}, {}};
constexpr bool is_trial(FlashGpu gpu, int element_size, int channels) {
  return element_size == kTrial.element_size && channels == kTrial.channels &&
         flash_shared_bytes(element_size, channels, kTrial.small) <= flash_shared_limit(gpu);
}
constexpr bool trial_has_an_entry() {
  for (const FlashEntry& entry : kFlashTable)
    if (is_trial(FlashGpu::kLarge, entry.element_size, entry.channels)) return true;
  return false;
}
static_assert(trial_has_an_entry(), "MASKCO_FLASH_SHAPE must name an entry of the table and fit into 163 KiB");
#endif

constexpr FlashShape flash_shape(FlashGpu gpu, const FlashEntry& entry) {
#ifdef MASKCO_FLASH_SHAPE
  if (is_trial(gpu, entry.element_size, entry.channels)) return kTrial.small;
#endif
  return gpu == FlashGpu::kLarge ? entry.large : entry.small;
}

}  // namespace maskco
