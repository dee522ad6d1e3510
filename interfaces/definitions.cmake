# Copyright 2026 sqap_vla_ros maintainers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

# Shared by every package in this folder: builds all definitions under msg/, srv/ and action/ against the ROS wheels.

macro(build_definitions)
  find_package(ament_cmake REQUIRED)
  find_package(rosidl_default_generators REQUIRED)
  find_package(Python3 REQUIRED COMPONENTS Interpreter Development.Module NumPy)
  # Services and actions pull these in later by themselves; found here so that the loop below sees their targets.
  foreach(dependency ${ARGN} action_msgs service_msgs)
    find_package(${dependency} REQUIRED)
  endforeach()

  # The wheels' Python targets export the include folders of the machine they were built on, which do not exist here.
  get_property(imported_targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target ${imported_targets})
    if(target MATCHES "__rosidl_generator_py$")
      set_target_properties(${target} PROPERTIES
        INTERFACE_INCLUDE_DIRECTORIES "${Python3_INCLUDE_DIRS};${Python3_NumPy_INCLUDE_DIRS}")
    endif()
  endforeach()

  file(GLOB definitions RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} CONFIGURE_DEPENDS msg/*.msg srv/*.srv action/*.action)
  rosidl_generate_interfaces(${PROJECT_NAME} ${definitions} DEPENDENCIES ${ARGN})
  ament_export_dependencies(rosidl_default_runtime)
  ament_package()
endmacro()
