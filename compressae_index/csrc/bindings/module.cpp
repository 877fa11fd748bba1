// The module _engine. This folder alone knows Python: it checks shapes and bounds, keeps borrowed arrays alive, drops
// the GIL around the work, and hands results over without copies.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "base/thread_pool.hpp"
#include "bindings/families.hpp"
#include "bindings/gil.hpp"
#include "kernels/dispatch.hpp"

NB_MODULE(_engine, m) {
  using namespace compressae;
  m.doc() = "The search engine: posting lists, forward codes, re-scoring, pursuit.";
  // Objects that daemon threads hold when Python ends are not leaks.
  nanobind::set_leak_warnings(false);
  ThreadPool::set_poll(&bindings::WithoutGil::poll);
  ThreadPool::instance();  // now, as a fork may come while another thread is at its first search

  m.def("simd", &simd_name,
        "Instruction set in use: amx, avx512vbmi, avx512, avx2, neon or plain\n"
        "(COMPRESSAE_SIMD forces one).");
  bindings::bind_inputs(m);
  bindings::bind_dictionary(m);
  bindings::bind_lists(m);
  bindings::bind_codes(m);
  bindings::bind_refiners(m);
  bindings::bind_search(m);
}
