// The functions by which each file here adds to the module.
#pragma once

#include <nanobind/nanobind.h>

namespace compressae::bindings {

void bind_inputs(nanobind::module_& m);
void bind_dictionary(nanobind::module_& m);
void bind_lists(nanobind::module_& m);
void bind_codes(nanobind::module_& m);
void bind_refiners(nanobind::module_& m);
void bind_search(nanobind::module_& m);

}  // namespace compressae::bindings
