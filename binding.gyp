# CMakeLists.txt is the one build description: this file only hands over to it, for tools that look for a binding.gyp.
{
  'targets': [
    {
      'target_name': 'torchgraft_native',
      'type': 'none',
      'actions': [
        {
          'action_name': 'cmake',
          'message': 'Building the native addon of torchgraft with CMake',
          'inputs': ['CMakeLists.txt'],
          'outputs': ['build/Release/torchgraft.node'],
          'action': ['node', 'scripts/build/build.mjs', 'native'],
        },
      ],
    },
  ],
}
