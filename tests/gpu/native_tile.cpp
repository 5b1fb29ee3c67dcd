// One tile of the compiled kernels, for tests/gpu/test_native_sums.py.
#include "tile.h"

extern "C" {

int sums_in_blocks() { return PAWL_BLOCK_SUMS; }
int most_rows() { return pawl::kTileRows<pawl::Bf16>; }

void multiply(int keeps, int rows, const pawl::Unit* a, const pawl::Unit* panel, float* c, const float* keep,
              int64_t a_stride, int64_t depth) {
    [[maybe_unused]] const pawl::TileRegisters registers;
    if (keeps)
        pawl::multiply_tile<pawl::Bf16, true>(rows, a, a_stride, panel, depth, c, keep, pawl::Fetch{});
    else
        pawl::multiply_tile<pawl::Bf16>(rows, a, a_stride, panel, depth, c, nullptr, pawl::Fetch{panel, 0});
}

}
