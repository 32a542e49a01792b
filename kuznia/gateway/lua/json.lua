-- Text as JSON has it; before each of the other scripts.
local ESCAPES = { ['"'] = '\\"', ["\\"] = "\\\\" }
local function escape(character)
  return ESCAPES[character] or string.format("\\u%04x", string.byte(character))
end
local function quoted(text)
  local plain = string.gsub(text or "", '[%c"\\\127-\255]', escape)
  return '"' .. plain .. '"'
end
