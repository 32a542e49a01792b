-- One line in the spool when a request comes, one before the first byte of its answer goes: what
-- is answered is on record, also when this process is killed a moment later.
local SPOOL = "@SPOOL@"
local OURS = {
  "x-kuznia-release", "x-kuznia-route", "x-kuznia-tenant", "x-kuznia-caller", "x-kuznia-guard",
}
local file, minute

-- The handle's clock, in seconds with microseconds, as text.
local function now(handle)
  local ticks = handle:timestampString(EnvoyTimestampResolution.MICROSECOND)
  return string.sub(ticks, 1, -7) .. "." .. string.sub(ticks, -6)
end

-- True once the kernel has the line. A line begins and ends with a line end, so a write that
-- breaks off spoils itself alone.
local function append(time, line)
  local this = math.floor(tonumber(string.sub(time, 1, -8)) / 60)
  if this ~= minute then
    if file then file:close() end
    file = io.open(SPOOL .. "/requests-" .. this .. ".jsonl", "a")
    if not file then
      minute = nil
      return false
    end
    file:setvbuf("no")
    minute = this
  end
  if file:write("\n" .. line .. "\n") then return true end
  file:close()
  file, minute = nil, nil
  return false
end

local function record(handle)
  local headers = handle:headers()
  for _, name in ipairs(OURS) do headers:remove(name) end
  local time = now(handle)
  local line = '{"e":"in","id":' .. quoted(headers:get("x-request-id")) .. ',"t":' .. time
    .. ',"method":' .. quoted(headers:get(":method")) .. ',"path":' .. quoted(headers:get(":path"))
    .. ',"host":' .. quoted(headers:get(":authority"))
    .. ',"ip":' .. quoted(string.gsub(handle:streamInfo():downstreamDirectRemoteAddress(), ":%d+$", "")) .. "}"
  if not append(time, line) then
    handle:respond({ [":status"] = "503", ["retry-after"] = "5" },
      "the audit log cannot be written, so nothing is answered; tell whoever runs the gateway")
    return
  end
  -- The answer's side has no request headers.
  handle:streamInfo():dynamicMetadata():set("kuznia", "id", headers:get("x-request-id"))
end

function envoy_on_request(handle)
  local done, fault = pcall(record, handle)
  if not done then
    handle:logErr("record: " .. tostring(fault))
    handle:respond({ [":status"] = "500" }, "the gateway could not record this request")
  end
end

-- Envoy's x-ratelimit-* (one limit, the nearest to its end) under the names of OpenAI's API.
local function rename_limits(headers, status)
  local limit = headers:get("x-ratelimit-limit")
  if not limit then return end
  local remaining, reset = headers:get("x-ratelimit-remaining"), headers:get("x-ratelimit-reset")
  for _, name in ipairs({ "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset" }) do
    headers:remove(name)
  end
  -- "2, 9;w=60;name=..., 2;w=60;name=...": the number in front is the one that is nearest.
  local nearest = string.match(limit, "^%d+")
  local what = string.match(limit, ", " .. nearest .. ';w=%d+;name="(%a+)_per_') or "requests"
  headers:replace("x-ratelimit-limit-" .. what, nearest)
  headers:replace("x-ratelimit-remaining-" .. what, remaining or "0")
  headers:replace("x-ratelimit-reset-" .. what, (reset or "0") .. "s")
  if status == "429" then headers:replace("retry-after", reset or "1") end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get(":status")
  if headers:get("x-envoy-upstream-service-time") then
    headers:remove("x-envoy-upstream-service-time")
    -- vLLM's queue is full. The guard says so itself, and its 503 is a model that is gone.
    if status == "503" and not headers:get("x-kuznia-guard") then
      status = "429"
      headers:replace(":status", status)
    end
  end
  rename_limits(headers, status)
  if status == "429" and not headers:get("retry-after") then headers:add("retry-after", "1") end
  local guard = headers:get("x-kuznia-guard")
  if guard then headers:remove("x-kuznia-guard") end
  headers:remove("x-kuznia-code")
  local known = handle:streamInfo():dynamicMetadata():get("kuznia")
  if not known or not known["id"] then return end
  headers:replace("x-request-id", known["id"])
  local time = now(handle)
  append(time, '{"e":"out","id":' .. quoted(known["id"]) .. ',"t":' .. time .. ',"status":' .. status
    .. "," .. (known["who"] or '"tenant":""')
    .. (known["reason"] and ',"reason":' .. quoted(known["reason"]) or "")
    .. ',"guard":' .. (guard and quoted(guard) or "null") .. "}")
end
