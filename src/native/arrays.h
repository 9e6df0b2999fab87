// What the module knows of NumPy arrays; the choice of the instruction set and of the number of threads; kernels run over rows.
#pragma once
#include <Python.h>
#include <numpy/arrayobject.h>
#include <numpy/ufuncobject.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "kernels.h"

namespace {

const Kernels* const compiled[] = {
#if defined(FASTSOFTMAX_X86)
    &avx512::kernels, &avx2::kernels, &baseline::kernels,
#elif defined(FASTSOFTMAX_ARM64)
    &neon::kernels,
#else
    &baseline::kernels,
#endif
};

bool runs_here(const Kernels* k) {
#if defined(FASTSOFTMAX_X86)
    if (!std::strcmp(k->name, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
    if (!std::strcmp(k->name, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#endif
    return k->name != nullptr;
}

const Kernels* kernels;  // the chosen ones

constexpr npy_intp few = 8192;  // fewer elements are computed, or written, without releasing the GIL
constexpr npy_intp share = 1 << 15;  // a thread of its own pays for that many, half as many of float64, and four times as many of a Jacobian

constexpr npy_intp cached = 24 << 20;  // bytes that a cache may keep

bool is_forked_child = false;  // there OpenMP would wait for threads that the fork did not copy

// Whether an array is of the bfloat16 that ml_dtypes has registered with NumPy.
bool is_bfloat16(PyArrayObject* a) {
    if (!PyTypeNum_ISUSERDEF(PyArray_TYPE(a)) || PyArray_ITEMSIZE(a) != 2) return false;
    const char *name = PyArray_DESCR(a)->typeobj->tp_name, *dot = std::strrchr(name, '.');
    return !std::strcmp(dot ? dot + 1 : name, "bfloat16");
}

Type type_of(PyArrayObject* a) {
    switch (PyArray_TYPE(a)) {
        case NPY_FLOAT: return FLOAT32;
        case NPY_DOUBLE: return FLOAT64;
        case NPY_HALF: return FLOAT16;
        default: return is_bfloat16(a) ? BFLOAT16 : TYPES;
    }
}

bool is_rows(PyArrayObject* a) {
    return type_of(a) != TYPES && PyArray_NDIM(a) > 0 && PyArray_ISCARRAY_RO(a) && PyArray_SIZE(a) > 0;
}

// A view of such an array, with strides of whole elements.
bool is_view(PyArrayObject* a) {
    if (type_of(a) == TYPES || PyArray_NDIM(a) == 0 || !PyArray_ISBEHAVED_RO(a) || PyArray_SIZE(a) == 0) return false;
    return std::all_of(PyArray_STRIDES(a), PyArray_STRIDES(a) + PyArray_NDIM(a), [=](npy_intp s) { return s % PyArray_ITEMSIZE(a) == 0; });
}

Layout layout_of(PyArrayObject* a) {
    if (PyArray_IS_C_CONTIGUOUS(a)) return {};
    return {PyArray_NDIM(a), PyArray_DIMS(a), PyArray_STRIDES(a)};
}

// How many threads pay for so many elements of float32, the calling one included.
int threads_for(npy_intp elements) {
#ifdef _OPENMP
    if (!is_forked_child && elements >= 2 * share)
        return static_cast<int>(std::min<npy_intp>(omp_get_max_threads(), elements / share));
#else
    (void)elements;
#endif
    return 1;
}

// The kernel over all rows, shared out among threads; of few rows or very long ones, each is shared. Of columns whole blocks go
// together, or `wide` columns: a core that reads or writes less of a row takes lines ahead that another one has.
bool in_threads(Kernel kernel, Rows rows, int threads, npy_intp scratch, npy_intp wide) {
    constexpr npy_intp very_long = 1 << 17, large = 1 << 18;
    bool whole = rows.after <= wide || has_narrow_blocks(rows) || rows.count / rows.after >= 4 * threads;
    npy_intp unit = whole ? rows.after : wide, units = rows.count / unit;
    if (rows.after > 1 && units > 1) threads = static_cast<int>(std::min<npy_intp>(threads, units));
    if (threads == 1 || units < threads || (unit == 1 && rows.n >= very_long * threads)) {
        rows.threads = threads;
        return kernel(rows);
    }
    bool invalid = false;
#ifdef _OPENMP
    npy_intp pieces = 8 * threads;  // several each: another program may have one of the cores
    if (rows.after > 1) pieces = std::clamp<npy_intp>(rows.count * rows.n / large, threads, pieces);
    pieces = std::min(pieces, units);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) reduction(|| : invalid)
    for (npy_intp i = 0; i < pieces; ++i) {
        Rows part = rows;
        part.first = units * i / pieces * unit;
        part.count = (i + 1 == pieces ? rows.count : units * (i + 1) / pieces * unit) - part.first;
        if (rows.scratch) part.scratch = static_cast<char*>(rows.scratch) + omp_get_thread_num() * scratch;
        invalid = kernel(part) || invalid;
    }
#endif
    return invalid;
}

constexpr bool is_jacobian(Function f) { return f == SOFTMAX_JACOBIAN || f == LOG_SOFTMAX_JACOBIAN; }

// Memory for the kernels. As NumPy does for its own, much of it is asked for in huge pages: new ones cost as much as the work.
void* new_scratch(npy_intp size) {
    void* scratch = PyMem_RawMalloc(size);
#ifdef MADV_HUGEPAGE
    constexpr npy_intp much = 1 << 22, page = 4096;
    if (scratch && size >= much) {
        npy_intp offset = page - reinterpret_cast<uintptr_t>(scratch) % page;
        madvise(static_cast<char*>(scratch) + offset, size - offset, MADV_HUGEPAGE);
    }
#endif
    return scratch;
}

// Runs the kernel over all rows; false with an exception set, if NumPy's error state or a lack of memory asks for one.
bool run(Function function, PyArrayObject* x, Rows rows) {
    Kernel kernel = kernels->rows[function][type_of(x)];
    npy_intp elements = rows.count * rows.n * (is_jacobian(function) || function == SOFTMAX_JACOBIAN_EIGENVALUES ? rows.n : 1);
    int threads = threads_for(elements * (type_of(x) == FLOAT64 ? 2 : 1) / (is_jacobian(function) ? 4 : 1));
    if (threads == 2 && rows.losses && rows.losses->after_blas) threads = 1;  // the second would wait for a core
    npy_intp scratch = scratch_size(function, rows, PyArray_ITEMSIZE(x));
    if (scratch && !(rows.scratch = new_scratch(scratch * threads))) return PyErr_NoMemory() != nullptr;
    rows.streams = elements * PyArray_ITEMSIZE(x) > cached;
    bool invalid;
    if (elements < few) {
        invalid = kernel(rows);
    } else {
        Py_BEGIN_ALLOW_THREADS;
        invalid = in_threads(kernel, rows, threads, scratch, function == LOGSUMEXP ? 64 : 512);
        Py_END_ALLOW_THREADS;
    }
    PyMem_RawFree(rows.scratch);
    static const char* const names[] = {"softmax", "log_softmax", "logsumexp"};  // of the others, only losses signal
    const char* name = function == CROSS_ENTROPY ? "cross_entropy" : names[function];
    return !invalid || PyUFunc_GiveFloatingpointErrors(name, NPY_FPE_INVALID) == 0;
}

npy_intp length(PyArrayObject* x) { return PyArray_DIM(x, PyArray_NDIM(x) - 1); }

// The memory an array lies in.
struct Extent {
    const char *first, *end;
    explicit Extent(PyArrayObject* a) : first(PyArray_BYTES(a)), end(first + PyArray_ITEMSIZE(a)) {
        for (int i = 0; i < PyArray_NDIM(a); ++i) {
            npy_intp length = (PyArray_DIM(a, i) - 1) * PyArray_STRIDE(a, i);
            (length < 0 ? first : end) += length;
        }
    }
};

bool overlap(PyArrayObject* a, PyArrayObject* b) {
    Extent of_a(a), of_b(b);
    return of_a.first < of_b.end && of_b.first < of_a.end;
}

// Whether out can take a result of such a shape, of the dtype of x.
bool fits(PyObject* out, PyArrayObject* x, int ndim, const npy_intp* dims) {
    if (!PyArray_CheckExact(out)) return false;
    auto y = reinterpret_cast<PyArrayObject*>(out);
    return PyArray_TYPE(y) == PyArray_TYPE(x) && PyArray_ISBEHAVED(y) && PyArray_NDIM(y) == ndim &&
           PyArray_CompareLists(dims, PyArray_DIMS(y), ndim);
}

// A temperature that is a number of Python's or NumPy's; 0 for anything else, which others look at.
double to_temperature(PyObject* temperature) {
    if (PyFloat_Check(temperature)) return PyFloat_AS_DOUBLE(temperature);
    if (PyArray_IsScalar(temperature, Floating) && !PyArray_IsScalar(temperature, LongDouble)) return PyFloat_AsDouble(temperature);
    int overflow;
    return PyLong_CheckExact(temperature) ? static_cast<double>(PyLong_AsLongAndOverflow(temperature, &overflow)) : 0;
}

// The axis of x that an argument names; -1 where it does not, or it is none that we take directly.
int to_axis(PyObject* axis, PyArrayObject* x) {
    int overflow, ndim = PyArray_NDIM(x);
    if (!PyLong_CheckExact(axis) && !PyArray_IsScalar(axis, Integer)) return -1;
    long a = PyLong_AsLongAndOverflow(axis, &overflow);
    if (a < 0) a += ndim;
    return !overflow && a >= 0 && a < ndim ? static_cast<int>(a) : -1;
}

// Axes from the first on, before the end.
struct Axes {
    int first = -1, end = 0;
};

// One axis or several that follow each other; or from -1 on, likewise.
Axes to_axes(PyObject* axes, PyArrayObject* x) {
    if (axes == Py_None) return {0, PyArray_NDIM(x)};
    if (!PyTuple_CheckExact(axes)) {
        int axis = to_axis(axes, x);
        return {axis, axis + 1};
    }
    Axes all;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(axes); ++i) {
        int axis = to_axis(PyTuple_GET_ITEM(axes, i), x);
        if (axis < 0 || (i > 0 && axis != all.end)) return {};
        if (i == 0) all.first = axis;
        all.end = axis + 1;
    }
    return all;
}

}  // namespace
