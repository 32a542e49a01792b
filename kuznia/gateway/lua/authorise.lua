-- Who may ask which model. Claims come from a verified token, everything else from the registry:
-- the route's metadata, and POLICY (hosts, groups, revoked keys), which is read again on change.
local FOLDER = "@FOLDER@"
local POLICY = FOLDER .. "/policy.lua"
local ENDPOINTS = {
  ["chat/completions"] = "POST", completions = "POST", responses = "POST", embeddings = "POST",
  models = "GET",
}
local policy, mark, looked = nil, nil, 0

-- The policy in force: looked at once a second, loaded when its first line, a digest, differs;
-- a file that cannot be read leaves the one before.
local function current(handle)
  local second = os.time()
  if second ~= looked then
    looked = second
    local file = io.open(POLICY)
    if file then
      local first = file:read("*l")
      file:close()
      if first ~= mark then
        local load, fault = loadfile(POLICY)
        if load then
          policy, mark = load(), first
        else
          handle:logErr("policy: " .. fault)
        end
      end
    end
  end
  return policy
end

local function deny(handle, status, code, reason)
  local known = handle:streamInfo():dynamicMetadata()
  known:set("kuznia", "reason", reason)
  handle:respond({ [":status"] = status, ["x-kuznia-code"] = code }, reason)
end

-- A claim that is a list, as a set; nil where everything is allowed.
local function set_of(list)
  if type(list) ~= "table" then return {} end
  local found = {}
  for _, value in ipairs(list) do
    if value == "*" then return nil end
    found[value] = true
  end
  return found
end

local ALL = { "*" }

-- Tenants that the token opens: {tenant = {stages, models, risks}}, sets or nil for all.
local function grants_of(claims)
  if claims["iss"] == policy.issuer then
    return { [claims["tenant"] or ""] = {
      stages = set_of(claims["stages"]), models = set_of(claims["models"]),
      risks = set_of(claims["risks"]),
    } }
  end
  local groups = claims[policy.groups_claims[claims["iss"]] or ""]
  local grants = {}
  for _, group in ipairs(type(groups) == "table" and groups or {}) do
    for tenant, stages in pairs(policy.groups[group] or {}) do
      local grant = grants[tenant] or {
        stages = {}, models = set_of(claims["models"] or ALL), risks = set_of(claims["risks"] or ALL),
      }
      for _, stage in ipairs(stages) do grant.stages[stage] = true end
      grants[tenant] = grant
    end
  end
  return grants
end

-- Why a grant does not open a release; nil where it does.
local function fault_of(grant, release)
  if grant.models and not grant.models[release.model] then
    return "this key is not for the model " .. release.model
  end
  if grant.stages and not grant.stages[release.stage] then
    return "this key is not for releases in " .. release.stage
  end
  if grant.risks and not grant.risks[release.risk] then
    return "this key is not for models of risk class " .. release.risk
  end
end

local function listing(handle, grants, tenant, model)
  local found = {}
  for name, grant in pairs(grants) do
    if not tenant or name == tenant then
      -- Asked for now and then; all of them in each worker's memory would be much.
      local load = string.match(name, "^[a-z0-9-]+$") and loadfile(FOLDER .. "/models/" .. name .. ".lua")
      for _, each in ipairs(load and load() or {}) do
        if (not model or each.model == model) and not fault_of(grant, each) then
          table.insert(found, '{"id":' .. quoted(each.id) .. ',"object":"model","created":0,"owned_by":'
            .. quoted(name) .. ',"name":' .. quoted(each.name) .. ',"description":'
            .. quoted(each.description) .. ',"risk":' .. quoted(each.risk) .. "}")
        end
      end
    end
  end
  table.sort(found)
  handle:respond({ [":status"] = "200", ["content-type"] = "application/json" },
    '{"object":"list","data":[' .. table.concat(found, ",") .. "]}")
end

local function hundredth(text)
  local sum = 5381
  for index = 1, #text do sum = (sum * 33 + string.byte(text, index)) % 4294967296 end
  return sum % 100
end

local function authorise(handle)
  local headers = handle:headers()
  local known = handle:streamInfo():dynamicMetadata()
  if not current(handle) then
    return deny(handle, "503", "server_error", "the gateway has no policy yet; try again")
  end
  local claims = (known:get("envoy.filters.http.jwt_authn") or {})["token"]
  if not claims then
    return deny(handle, "401", "invalid_api_key", "no token; send one as Authorization: Bearer")
  end
  -- It becomes a header.
  local caller = string.gsub(tostring(claims["sub"] or ""), "%c", " ")
  -- Whom limits count: keys of one name, or a person, who has a new token every hour.
  local key = caller ~= "" and caller or claims["jti"] or ""
  local who = ',"caller":' .. quoted(caller) .. ',"key":' .. quoted(claims["jti"])
  local ours = claims["iss"] == policy.issuer and claims["tenant"]
  known:set("kuznia", "who", '"tenant":' .. quoted(ours or "") .. who)
  if claims["jti"] and policy.revoked[claims["jti"]] then
    return deny(handle, "401", "invalid_api_key", "this key is revoked; ask for a new one")
  end

  local path = string.match(headers:get(":path"), "^[^?#]*")
  local tenant, model, endpoint = nil, nil, string.match(path, "^/v1/([a-z/]+)$")
  if not endpoint then
    tenant, model, endpoint = string.match(path, "^/([a-z0-9-]+)/([a-z0-9-]+)/v1/([a-z/]+)$")
  end
  if not endpoint or ENDPOINTS[endpoint] ~= headers:get(":method") then
    return deny(handle, "404", "not_found", "no such path; see GET /v1/models")
  end
  local host = string.lower(string.match(headers:get(":authority") or "", "^[^:]*"))
  local owner = policy.hosts[host]
  if owner == nil and not policy.any_host then
    return deny(handle, "404", "not_found", "no such host")
  end
  if owner and tenant and owner ~= tenant then
    return deny(handle, "403", "permission_denied", "this host is not of that tenant")
  end
  tenant = tenant or owner or nil

  local grants = grants_of(claims)
  if tenant and not grants[tenant] then
    return deny(handle, "403", "permission_denied", "this key is not of that tenant")
  end
  if endpoint == "models" then
    return listing(handle, grants, tenant, model and tenant .. "/" .. model)
  end

  local asked = (known:get("llm") or {})["model"]
  if type(asked) ~= "string" or asked == "" then
    return deny(handle, "400", "invalid_request", "the body must be JSON with a model; see GET /v1/models")
  end
  local of = string.match(asked, "^([a-z0-9-]+)/[a-z0-9-]+$")
    or string.match(asked, "^([a-z0-9-]+)/[a-z0-9-]+:[a-z]+$")
  if not of then
    return deny(handle, "404", "model_not_found", "no such model; see GET /v1/models for those you may use")
  end
  if not grants[of] or (tenant and of ~= tenant) then
    return deny(handle, "403", "permission_denied", "this key is not of that tenant")
  end
  if model and string.match(asked, "^[^:]*") ~= tenant .. "/" .. model then
    return deny(handle, "403", "permission_denied", "the model in the body is not the one in the path")
  end
  headers:replace("x-kuznia-route", asked)
  handle:clearRouteCache()
  local release = handle:metadata():get("release")
  if not release then
    return deny(handle, "404", "model_not_found", "no such model; see GET /v1/models for those you may use")
  end
  -- The same callers always get the same arm. The route's metadata is read once a request, so
  -- production has staging's beside its own.
  if release.split and hundredth(caller .. "\n" .. release.model) < release.split then
    headers:replace("x-kuznia-route", release.model .. ":staging")
    handle:clearRouteCache()
    release.id, release.about, release.risk = release.arm.id, release.arm.about, release.arm.risk
  end
  known:set("kuznia", "who", '"tenant":' .. quoted(of) .. who .. "," .. release.about)
  local fault = fault_of(grants[of], release)
  if fault then return deny(handle, "403", "permission_denied", fault) end

  headers:replace(":path", "/v1/" .. endpoint)
  headers:replace("x-kuznia-release", release.id)
  headers:replace("x-kuznia-tenant", of)
  headers:replace("x-kuznia-caller", caller)
  if release.limited then
    for _, counter in ipairs(release.limited) do known:set("kuznia", counter, of) end
    known:set("kuznia", "key", key)
    -- Until an answer says how many; one that fails has none.
    known:set("llm", "tokens", 0)
    known:set("kuznia", "release", release.id)
  end
end

-- Envoy lets a request pass whose script fails; here nothing passes by mistake.
function envoy_on_request(handle)
  local done, fault = pcall(authorise, handle)
  if not done then
    handle:logErr("authorise: " .. tostring(fault))
    deny(handle, "500", "server_error", "the gateway could not look at this request")
  end
end
