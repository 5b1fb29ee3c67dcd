// Bfloat16 made of stored weights, where its products are summed in blocks (block_tile.h): tile registers multiply it in a
// third of the time that bytes take with their scales. It has the bits that weights have which do not stay as they are
// stored, and so have all results.
#pragma once

#include "block_tile.h"
#include "quantised.h"

namespace pawl {

// The weights of a panel, as [inputs / 2][32] units.
void make_panel(const QuantisedPanel& panel, int64_t inputs, Unit* to);

#if PAWL_TILES
// c [rows][32] = 1 .. kBlockTileRows rows, `stride` units apart, times a panel that is nowhere as a whole: registers
// multiply each block while the next one is made.
void multiply_made(const Unit* from, int64_t stride, int rows, const QuantisedPanel& panel, int64_t inputs, float* c);
#endif

}  // namespace pawl
