// Checks of callers' vectors and ids.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "base/strings.hpp"
#include "bindings/arrays.hpp"
#include "bindings/families.hpp"
#include "dictionary/rows.hpp"

namespace compressae::bindings {
namespace {

std::size_t first_without_direction(const Input<float, 2>& rows, float smallest) {
  return without_gil(
      [&] { return compressae::first_without_direction(rows.data(), rows.shape(0), rows.shape(1), smallest); });
}

// Strings that are not counted repeat nothing.
std::size_t first_repeated(const Input<std::uint8_t, 1>& text, const Input<std::int64_t, 1>& ends,
                           const std::optional<Input<bool, 1>>& counted) {
  require(ends.shape(0) >= 1, "there are no ends");
  const std::size_t n = ends.shape(0) - 1;
  require(std::is_sorted(ends.data(), ends.data() + n + 1) && ends.data()[0] == 0 &&
              static_cast<std::size_t>(ends.data()[n]) == text.shape(0),
          "ends do not ascend from 0 to the length of the text");
  if (counted) require_equal(counted->shape(0), n, "length of counted");
  return without_gil([&] {
    return compressae::first_repeated(reinterpret_cast<const char*>(text.data()), ends.data(), n,
                                      counted ? counted->data() : nullptr);
  });
}

Output<float> directions(const Input<float, 2>& rows) {
  const std::size_t n = rows.shape(0), dim = rows.shape(1);
  return to_numpy(without_gil([&] { return compressae::directions(rows.data(), n, dim); }), {n, dim});
}

}  // namespace

void bind_inputs(nb::module_& m) {
  m.def("first_without_direction", &first_without_direction, "rows"_a.noconvert(), "smallest"_a,
        "First row (n, dim) that is not finite, or holds nothing as large as `smallest`; n where there is none.");
  m.def(
      "first_repeated", &first_repeated, "text"_a.noconvert(), "ends"_a.noconvert(), "counted"_a.noconvert().none(),
      "First of the strings text[ends[i]:ends[i + 1]] that equals one before it, or their number; of those alone that\n"
      "are `counted`, if given.");
  m.def("directions", &directions, "rows"_a.noconvert(), "Rows (n, dim), none of them zero, divided by their norms.");
}

}  // namespace compressae::bindings
