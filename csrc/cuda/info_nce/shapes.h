// The tile shapes of info_nce's tensor-core kernels, in one table. The kernels are generated from it. Tests and
// benchmarks read their cases from its rows (tests/helpers/simulated.py).
//
// To change a shape, change its row and run `python -m benchmarks.cuda_static --update`. To try a shape without editing
// the table, build with -DMASKCO_FLASH_SHAPE=2:128:8x1x64x1. The numbers are bytes of an element : channels : the
// shape's four numbers. GPUs on which it does not fit keep the table's shape. `python -m benchmarks.flash_shapes`
// builds and times several.
#pragma once

namespace maskco {

// A warp's rows share each fragment of columns that it loads from shared memory. So more rows for each warp are faster,
// as long as registers last: the sums take rows · C / 32 of a thread's 255. A tile's columns share each fragment of
// rows in the same way.
struct FlashShape {
  int warps;
  int row_blocks;     // of 16 rows, a warp
  int columns;        // of a tile
  int blocks_per_sm;  // for which registers and shared memory must suffice

  constexpr int rows() const { return 16 * warps * row_blocks; }
};

// GPUs differ in the shared memory that they allow a block. Only the host asks for the kind of GPU. The shape is part
// of the kernel's type, so a launch always fits the code that runs, whatever it was compiled for.
enum class FlashGpu { kSmall, kLarge };
constexpr int flash_shared_limit(FlashGpu gpu) {
  return gpu == FlashGpu::kLarge ? 163 * 1024  // of compute capability 8.0, 8.7, 9.0, 10.0
                                 : 99 * 1024;  // 8.6, 8.9, 12.0, and all others from 8.0 on
}

struct FlashEntry {
  int element_size;  // bytes: 2 for float16 and bfloat16, 4 for float32 (by one or three TF32)
  int channels;
  FlashShape small, large;
};

// Eight warps for each SM are planned, the most that 255 registers for each thread allow. Nothing has been timed yet.
// Shapes were judged by ptxas (registers, spills) and by their shared memory.
constexpr FlashEntry kFlashTable[] = {
    // Registers: 32 for sums, 168 in all, so twelve warps fit on an SM. We tried 64 columns: 64 for logits, not 32.
    {2, 32, {4, 2, 32, 3}, {4, 2, 32, 3}},
    // Registers: 64 for sums, up to 245 in all. We tried 64 columns: 64 for logits, not 32.
    {2, 64, {4, 2, 32, 2}, {4, 2, 32, 2}},
    // Registers: 96 for sums, up to 244 in all.
    {2, 96, {4, 2, 32, 2}, {4, 2, 32, 2}},
    // Registers: 128 for sums, up to 255 in all. Shared memory: 49 KiB, so two blocks just fit on an SM of 100 KiB.
    {2, 128, {4, 2, 32, 2}, {4, 2, 32, 2}},
    // Registers: two blocks of rows would need 192 for sums alone. Shared memory: 98 of 99 KiB.
    {2, 192, {8, 1, 64, 1}, {8, 1, 64, 1}},
    // Registers: 128 for sums, up to 255 in all. Shared memory: 97 KiB with 32 columns, 130 with 64.
    {2, 256, {8, 1, 32, 1}, {8, 1, 64, 1}},
    // Registers: up to 243 in all. We tried a third block on an SM: 168 registers do not suffice.
    {4, 32, {4, 2, 32, 2}, {4, 2, 32, 2}},
    // Registers: 64 for sums, up to 249 in all. Shared memory: 49 KiB, so two blocks just fit on an SM of 100 KiB.
    {4, 64, {4, 2, 32, 2}, {4, 2, 32, 2}},
    // Shared memory: 73 KiB, so one block on an SM of 100 KiB. Hence eight warps of 16 rows, not four of 32.
    {4, 96, {8, 1, 32, 1}, {8, 1, 32, 1}},
    // Shared memory: 97 KiB with 32 columns, 130 with 64. Registers: up to 255 with 64 columns.
    {4, 128, {8, 1, 32, 1}, {8, 1, 64, 1}},
    // Shared memory: 97 KiB with four warps, 145 with eight. We tried 16 columns with two blocks on an SM.
    {4, 192, {4, 1, 32, 1}, {8, 1, 32, 1}},
    // Shared memory: 97 KiB with four warps, 161 of 163 with eight. Registers: up to 254.
    {4, 256, {4, 1, 16, 1}, {8, 1, 16, 1}},
};
constexpr int kFlashEntries = sizeof(kFlashTable) / sizeof(FlashEntry);

constexpr int kFlashStages = 2;   // tiles of columns in shared memory: one in use, the next on its way
constexpr int kMaxSplits = 1024;  // of the columns; the merging kernel has a number for each in shared memory

// Shared memory of a block with ids, in bytes: the rows, the tiles of columns, and values for each row or column.
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
