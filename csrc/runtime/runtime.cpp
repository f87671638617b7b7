// runtime.node: an addon that does nothing but bring LibTorch into the process.
//
// In a published package the addon and LibTorch's libraries lie in two npm packages, and where these lie to each other
// is the package manager's choice. So the package of the libraries carries this file beside them. Once it is loaded,
// the dynamic linker has the libraries by name and gives them to the addon, wherever that one lies.

// The symbol that Node looks for, in the shape of Node-API: (environment, exports) -> exports.
extern "C" __attribute__((visibility("default"))) void* napi_register_module_v1(void* environment, void* exports);

extern "C" void* napi_register_module_v1(void* /*environment*/, void* exports) { return exports; }
