// The table of kernels of one instruction set: compiled once for each. No function of the standard library is used by
// kernels, and all of theirs are in unnamed namespaces, headers or not: an inline function compiled with wider
// instructions could be the copy that the linker keeps for the whole module.
#include "kernels/accumulate.hpp"
#include "kernels/code_dots.hpp"
#include "kernels/floats.hpp"
#include "kernels/harvest.hpp"
#include "kernels/kernels.hpp"
#include "kernels/lengthen.hpp"
#include "kernels/products.hpp"
#include "kernels/residual_dots.hpp"
#include "kernels/select.hpp"

namespace compressae {

extern const Kernels COMPRESSAE_KERNELS{
    .lengthen = lengthen,
    .accumulate = accumulate,
    .group_maxima = group_maxima,
    .count_above = count_above,
    .harvest = harvest,
    .count_bits = count_bits,
    .count_at_least = count_at_least,
    .find_at_least = find_at_least,
    .arg_max_abs = arg_max_abs,
    .gather_dot = gather_dot,
    .packed_dots = packed_dots,
    .residual_dots = residual_dots,
    .widen = widen,
    .multiply = multiply,
    .multiply_upper = multiply_upper,
    .multiply_strongest = multiply_strongest,
    .surplus = surplus,
    .byte_dots = byte_dots,
    .interleave = interleave,
    .strongest_left = strongest_left,
    .dot = dot,
    .dots = dots,
    .add_rows = add_rows,
    .combine = combine,
    .round_to_levels = round_to_levels,
};

}  // namespace compressae
