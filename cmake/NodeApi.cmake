# Node's C headers from the package node-api-headers: nothing is downloaded for them, and the addon runs on any Node that
# has this Node-API version.
find_path(NODE_API_INCLUDE_DIR node_api.h
  HINTS "${CMAKE_CURRENT_SOURCE_DIR}/node_modules/node-api-headers/include"
        "${CMAKE_CURRENT_SOURCE_DIR}/../node-api-headers/include"
  NO_DEFAULT_PATH)
if(NOT NODE_API_INCLUDE_DIR)
  message(FATAL_ERROR "No node_api.h: run 'npm ci' first, or pass -DNODE_API_INCLUDE_DIR=DIR.")
endif()

add_library(NodeApi::NodeApi INTERFACE IMPORTED)
target_include_directories(NodeApi::NodeApi SYSTEM INTERFACE "${NODE_API_INCLUDE_DIR}")
target_compile_definitions(NodeApi::NodeApi INTERFACE NAPI_VERSION=9)
if(APPLE)
  # Node itself supplies these symbols when it loads the addon.
  target_link_options(NodeApi::NodeApi INTERFACE -undefined dynamic_lookup)
endif()
