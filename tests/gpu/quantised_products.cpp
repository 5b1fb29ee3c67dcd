// What tests ask of the kernels for quantised weights, compiled for whatever processor they choose.
#include "made.h"
#include "quantised.h"
#include "tile.h"

using namespace pawl;

extern "C" {

int32_t most_rows() { return kByteRows; }

int64_t stored_bytes(int32_t format, int64_t rows, int64_t inputs) {
    Arena arena;
    return QuantisedPart(arena, Format(format), rows, inputs).stored_bytes();
}

void there_and_back(int32_t format, int64_t rows, int64_t inputs, const uint8_t* from, uint8_t* to) {
    Arena arena;
    QuantisedPart part(arena, Format(format), rows, inputs);
    part.pack(from);
    part.unpack(to);
}

// to [rows][inputs]
void numbers(int32_t format, int64_t rows, int64_t inputs, const uint8_t* from, float* to) {
    Arena arena;
    QuantisedPart part(arena, Format(format), rows, inputs);
    part.pack(from);
    for (int64_t row = 0; row < rows; ++row)
        read_column({part.panel(row / kPanel), part.format()}, row % kPanel, inputs, to + row * inputs);
}

// c [count][rows] = x [count][inputs] times the weights, `tile` rows of x at a time.
void product(int32_t format, int64_t rows, int64_t inputs, const uint8_t* from, const float* x, int64_t count, int tile,
             float* c) {
    Arena arena;
    QuantisedPart part(arena, Format(format), rows, inputs);
    part.pack(from);
    const int64_t blocks = inputs / kBlockInputs, stride = blocks * kByteBlockUnits;
    Memory bytes(count * stride * 4);
    for (int64_t i = 0; i < count; ++i)
        to_bytes<Float32>(x + i * inputs, inputs, bytes.as<ByteBlock>() + i * blocks);
    for (int64_t panel = 0; panel < part.panels(); ++panel)
        for (int64_t first = 0; first < count; first += tile) {
            float out[kByteRows * kPanel];
            const int num = int(std::min<int64_t>(tile, count - first));
            multiply_bytes(bytes.as<Unit>() + first * stride, stride, num, {part.panel(panel), part.format()}, inputs, out);
            for (int i = 0; i < num; ++i)
                for (int64_t column = 0; column < kPanel && panel * kPanel + column < rows; ++column)
                    c[(first + i) * rows + panel * kPanel + column] = out[i * kPanel + column];
        }
}

// What is made of the weights: to [panels][inputs / 2][32] units.
void made(int32_t format, int64_t rows, int64_t inputs, const uint8_t* from, Unit* to) {
    Arena arena;
    QuantisedPart part(arena, Format(format), rows, inputs);
    part.pack(from);
    for (int64_t panel = 0; panel < part.panels(); ++panel)
        make_panel({part.panel(panel), part.format()}, inputs, to + panel * inputs / 2 * kPanel);
}

int32_t has_tiles() { return PAWL_TILES; }

// The product of `count` rows of units, x [count][inputs / 2], with what is made of 32 outputs while it is multiplied; and
// with what was made before: each [count][32].
void products_of_made([[maybe_unused]] int32_t format, [[maybe_unused]] int64_t rows, [[maybe_unused]] int64_t inputs,
                      [[maybe_unused]] const uint8_t* from, [[maybe_unused]] const Unit* x,
                      [[maybe_unused]] int64_t count, [[maybe_unused]] float* beside, [[maybe_unused]] float* before) {
#if PAWL_TILES
    Arena arena;
    QuantisedPart part(arena, Format(format), rows, inputs);
    part.pack(from);
    const QuantisedPanel panel{part.panel(0), part.format()};
    const TileRegisters registers;
    multiply_made(x, inputs / 2, int(count), panel, inputs, beside);
    Memory units(inputs / 2 * kPanel * 4);
    make_panel(panel, inputs, units.as<Unit>());
    multiply_tile<Bf16>(int(count), x, inputs / 2, units.as<Unit>(), inputs / 2, before, nullptr, Fetch{});
#endif
}

}  // extern "C"
