// The module fastsoftmax._native: checks what Python hands over and calls the kernels.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <numpy/arrayobject.h>

#include <algorithm>
#include <cmath>

namespace {

template <class T>
void softmax(const T* x, T* y, npy_intp rows, npy_intp n) {
    for (; rows--; x += n, y += n) {
        T m = *std::max_element(x, x + n), sum = 0;
        for (npy_intp i = 0; i < n; ++i) sum += y[i] = std::exp(x[i] - m);
        for (npy_intp i = 0; i < n; ++i) y[i] /= sum;
    }
}

// softmax(x): along the last axis of a C-contiguous float32 or float64 array; None for anything else.
PyObject* softmax(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 1 || !PyArray_CheckExact(args[0])) Py_RETURN_NONE;
    auto x = reinterpret_cast<PyArrayObject*>(args[0]);
    int type = PyArray_TYPE(x), ndim = PyArray_NDIM(x);
    if ((type != NPY_FLOAT && type != NPY_DOUBLE) || ndim == 0 || PyArray_SIZE(x) == 0 || !PyArray_ISCARRAY_RO(x))
        Py_RETURN_NONE;
    auto y = reinterpret_cast<PyArrayObject*>(PyArray_SimpleNew(ndim, PyArray_DIMS(x), type));
    if (!y) return nullptr;
    npy_intp n = PyArray_DIM(x, ndim - 1), rows = PyArray_SIZE(x) / n;
    if (type == NPY_FLOAT) softmax(static_cast<float*>(PyArray_DATA(x)), static_cast<float*>(PyArray_DATA(y)), rows, n);
    else softmax(static_cast<double*>(PyArray_DATA(x)), static_cast<double*>(PyArray_DATA(y)), rows, n);
    return reinterpret_cast<PyObject*>(y);
}

PyMethodDef methods[] = {
    {"softmax", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(
        static_cast<PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t)>(softmax))), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() {
    import_array();
    return PyModule_Create(&module);
}
