-- As much of luaunit as the problems beside this file use: deep comparison, and a run of every test_ function.
local M = { LuaUnit = {} }

local function same(a, b)
  if type(a) ~= "table" or type(b) ~= "table" then
    return a == b
  end
  for key, value in pairs(a) do
    if not same(value, b[key]) then return false end
  end
  for key in pairs(b) do
    if a[key] == nil then return false end
  end
  return true
end

function M.assertEquals(actual, expected)
  if not same(actual, expected) then error("expected another value", 2) end
end

function M.LuaUnit.run()
  local failed = 0
  for name, value in pairs(_G) do
    if type(name) == "string" and name:sub(1, 5) == "test_" and type(value) == "function" and not pcall(value) then
      failed = failed + 1
    end
  end
  return failed
end

return M
