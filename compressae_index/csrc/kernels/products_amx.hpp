// Products of rows of bytes by the tiles of AMX: 16 queries with 16 rows in each instruction.
#pragma once

#include "kernels/kernels.hpp"
#include "kernels/vectors.hpp"

#if defined(__AMX_INT8__)
namespace compressae {
namespace {

// Shapes of the eight tiles of this thread, from the constructor to the destructor. All have 16 lines of at most 64
// bytes; those of rows have a line for each of `steps` steps, and those of queries as many steps in each line.
class TileShapes {
 public:
  explicit TileShapes(std::size_t steps, std::size_t first_query_tile, std::size_t first_row_tile) {
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t line_bytes[16] = {};
      std::uint8_t lines[16] = {};
    } shapes;
    for (std::size_t tile = 0; tile < 8; ++tile) {
      const bool is_queries = tile >= first_query_tile && tile < first_row_tile;
      shapes.line_bytes[tile] = static_cast<std::uint16_t>(is_queries ? ProductRows::kStep * steps : 64);
      shapes.lines[tile] = static_cast<std::uint8_t>(tile >= first_row_tile ? steps : 16);
    }
    _tile_loadconfig(&shapes);
  }
  TileShapes(const TileShapes&) = delete;
  TileShapes& operator=(const TileShapes&) = delete;
  ~TileShapes() { _tile_release(); }
};

// Steps of a tile: the most, at most 16, that whole tiles are of.
inline std::size_t tile_steps(std::size_t steps) {
  std::size_t most = 16;
  while (steps % most != 0) --most;
  return most;
}

// Queries and rows of a block: two tiles of each.
constexpr std::size_t kTileQueries = 32, kTileRows = 32;

// sums[q][i] = <query q, row i> of a block; queries are `length` apart. Calls between(done, steps) after each tile's
// steps: its instructions run while tiles are multiplied.
template <typename Between>
void tile_sums(const std::uint8_t* rows, const std::int8_t* queries, std::size_t length, std::size_t steps,
               std::size_t tile, std::int32_t (*sums)[kTileRows], const Between& between) {
  constexpr std::size_t kStep = ProductRows::kStep, kLine = 16 * kStep;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::size_t step = 0; step < steps; step += tile) {
    _tile_loadd(6, rows + step * kLine, kLine);
    _tile_loadd(4, queries + step * kStep, length);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(7, rows + (steps + step) * kLine, kLine);
    _tile_dpbsud(1, 4, 7);
    _tile_loadd(5, queries + 16 * length + step * kStep, length);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
    between(step + tile, steps);
  }
  _tile_stored(0, &sums[0][0], sizeof sums[0]);
  _tile_stored(1, &sums[0][16], sizeof sums[0]);
  _tile_stored(2, &sums[16][0], sizeof sums[0]);
  _tile_stored(3, &sums[16][16], sizeof sums[0]);
}

}  // namespace
}  // namespace compressae
#endif
