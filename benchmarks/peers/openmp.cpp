// A weighted sum of float32 updates as a C++ controller does it: compiled by questions/aggregation.py.
// What is in `total` before does not matter: nothing has to be cleared in a pass of its own.
#include <cstddef>
#include <cstdint>
#include <cstring>

// Whether all are finite: by their bits, since -ffast-math takes for granted that they are.
static inline bool finite(const float *values, std::size_t begin, std::size_t end) {
  std::uint32_t bad = 0;
#pragma omp simd reduction(| : bad)
  for (std::size_t i = begin; i < end; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    bad |= (bits & 0x7f800000u) == 0x7f800000u;
  }
  return bad == 0;
}

extern "C" {

// Cores share the tensors out among them, and each sums its own: the design of MetisFL's controller.
void per_tensor(float *total, const float *const *updates, const float *weights, int num_updates,
                const std::size_t *ends, std::size_t num_tensors) {
#pragma omp parallel for
  for (std::size_t tensor = 0; tensor < num_tensors; ++tensor) {
    const std::size_t begin = tensor ? ends[tensor - 1] : 0;
    for (int update = 0; update < num_updates; ++update) {
      const float *values = updates[update];
      const float weight = weights[update];
      if (!update)
#pragma omp simd
        for (std::size_t i = begin; i < ends[tensor]; ++i) total[i] = weight * values[i];
      else
#pragma omp simd
        for (std::size_t i = begin; i < ends[tensor]; ++i) total[i] += weight * values[i];
    }
  }
}

// Tensor by tensor and update by update, each addition on all cores.
void within_tensors(float *total, const float *const *updates, const float *weights, int num_updates,
                const std::size_t *ends, std::size_t num_tensors) {
  std::size_t begin = 0;
  for (std::size_t tensor = 0; tensor < num_tensors; begin = ends[tensor++])
    for (int update = 0; update < num_updates; ++update) {
      const float *values = updates[update];
      const float weight = weights[update];
      if (!update)
#pragma omp parallel for simd
        for (std::size_t i = begin; i < ends[tensor]; ++i) total[i] = weight * values[i];
      else
#pragma omp parallel for simd
        for (std::size_t i = begin; i < ends[tensor]; ++i) total[i] += weight * values[i];
    }
}

// All tensors as one array, all updates in one pass: what a controller can do that waits for all of them.
void fused(float *total, const float *const *updates, const float *weights, int num_updates,
           std::size_t num_elements) {
  constexpr std::size_t block = 4096;
#pragma omp parallel for
  for (std::size_t begin = 0; begin < num_elements; begin += block) {
    const std::size_t end = begin + block < num_elements ? begin + block : num_elements;
    std::memset(total + begin, 0, (end - begin) * sizeof(float));
    for (int update = 0; update < num_updates; ++update) {
      const float *values = updates[update];
      const float weight = weights[update];
#pragma omp simd
      for (std::size_t i = begin; i < end; ++i) total[i] += weight * values[i];
    }
  }
}

// The same, each stretch looked at before it is added; a bad value is noticed when part of the sum is done, so
// the sum is lost then. Returns whether all were finite.
int fused_checked(float *total, const float *const *updates, const float *weights, int num_updates,
                  std::size_t num_elements) {
  constexpr std::size_t block = 4096;
  int good = 1;
#pragma omp parallel for reduction(& : good)
  for (std::size_t begin = 0; begin < num_elements; begin += block) {
    const std::size_t end = begin + block < num_elements ? begin + block : num_elements;
    std::memset(total + begin, 0, (end - begin) * sizeof(float));
    for (int update = 0; update < num_updates; ++update) {
      const float *values = updates[update];
      const float weight = weights[update];
      good &= finite(values, begin, end);
#pragma omp simd
      for (std::size_t i = begin; i < end; ++i) total[i] += weight * values[i];
    }
  }
  return good;
}

// One update at a time, as they arrive, all tensors as one array.
void streamed(float *total, const float *values, float weight, std::size_t num_elements, int first) {
  if (first)
#pragma omp parallel for simd
    for (std::size_t i = 0; i < num_elements; ++i) total[i] = weight * values[i];
  else
#pragma omp parallel for simd
    for (std::size_t i = 0; i < num_elements; ++i) total[i] += weight * values[i];
}

// One update at a time, all of it looked at before any of it is added: what ours promises.
int streamed_checked(float *total, const float *values, float weight, std::size_t num_elements, int first) {
  constexpr std::size_t block = 4096;
  int good = 1;
#pragma omp parallel for reduction(& : good)
  for (std::size_t begin = 0; begin < num_elements; begin += block)
    good &= finite(values, begin, begin + block < num_elements ? begin + block : num_elements);
  if (good) streamed(total, values, weight, num_elements, first);
  return good;
}

// How fast the machine reads, on all cores.
float read(const float *values, std::size_t num_elements) {
  float sum = 0;
#pragma omp parallel for simd reduction(+ : sum)
  for (std::size_t i = 0; i < num_elements; ++i) sum += values[i];
  return sum;
}
}
