"""One script that moves a job from where it was seen to somewhere else, or leaves it: compared and written in one step.

Guarantee: nothing is written for a job that is not exactly as it was seen, or of which a worker's execution lives. What
is written is what RQ's own workers would write, in all the places in which they would.
"""

# Each order is a job's: who it is, what was seen of it, where it goes. Keys are computed, for where a job's dependents
# are kept is known only by reading them.
MOVE = """
local function key(...) return table.concat({'rq', ...}, ':') end

local function is_as_seen(order)
  local now = redis.call('HMGET', key('job', order.id), unpack(order.fields))
  for place, was in ipairs(order.was) do
    if (now[place] or '') ~= was then return false end
  end
  return true
end

local function executions_are_as_seen(order)
  for execution, score in pairs(order.executions) do
    if redis.call('ZSCORE', key('wip', order.queue), order.id .. ':' .. execution) ~= score then return false end
  end
  return true
end

local function is_held(order)
  local known = redis.call('ZRANGE', key('executions', order.id), 0, -1)
  for execution, _ in pairs(order.executions) do table.insert(known, execution) end
  for _, execution in ipairs(known) do
    if redis.call('EXISTS', key('execution', order.id, execution)) == 1 then return true end
  end
  return false
end

local function has_parents(order)
  for _, parent in ipairs(order.parents) do
    if redis.call('EXISTS', key('job', parent)) == 1 then return true end
  end
  return false
end

local function has_let_go(order)
  for _, dependent in ipairs(order.dependents) do
    if redis.call('SISMEMBER', key('job', order.id, 'dependents'), dependent) == 0 then return true end
  end
  return false
end

-- The last check, and the first write.
local take = {
  queue = function(order) return redis.call('LREM', key('queue', order.queue), 1, order.id) > 0 end,
  intermediate = function(order)
    return redis.call('LREM', key('queue', order.queue, 'intermediate'), 1, order.id) > 0
  end,
  started = function(order)
    return order.was[1] == 'started' or not redis.call('LPOS', key('queue', order.queue), order.id)
  end,
  scheduled = function(order)
    local scheduled = key('scheduled', order.queue)
    return redis.call('ZSCORE', scheduled, order.id) == order.due and redis.call('ZREM', scheduled, order.id) > 0
  end,
  deferred = function(order)
    return not has_parents(order) and redis.call('ZREM', key('deferred', order.queue), order.id) > 0
  end,
  failed = function(order) return redis.call('ZREM', key('failed', order.queue), order.id) > 0 end,
}

local function forget_executions(order)
  for execution, _ in pairs(order.executions) do
    local name = order.id .. ':' .. execution
    redis.call('ZREM', key('wip', order.queue), name)
    if order.worker ~= '' then redis.call('SREM', key('worker', order.worker, 'executions'), name) end
  end
  redis.call('DEL', key('executions', order.id))
  redis.call('DEL', key('queue', order.queue, 'intermediate', 'first_seen', order.id))
end

local function expire(order, seconds)
  for _, name in ipairs({key('job', order.id), key('job', order.id, 'dependents'),
                         key('job', order.id, 'dependencies')}) do
    if seconds then redis.call('EXPIRE', name, seconds) else redis.call('PERSIST', name) end
  end
end

local function are_over(parents, but)
  for _, parent in ipairs(parents) do
    local status = parent ~= but and redis.call('HGET', key('job', parent), 'status')
    if status and status ~= 'finished' and status ~= 'failed' then return false end
  end
  return true
end

-- Whoever waits for a job and may go on though it failed is made ready; RQ queues who is ready.
local function let_dependents_go(order)
  for _, dependent in ipairs(redis.call('SMEMBERS', key('job', order.id, 'dependents'))) do
    local name = key('job', dependent)
    local said = redis.call('HMGET', name, 'status', 'allow_dependency_failures', 'origin')
    local parents = redis.call('SMEMBERS', key('job', dependent, 'dependencies'))
    if said[1] == 'deferred' and said[2] == '1' and said[3] and are_over(parents, order.id) then
      redis.call('ZREM', key('deferred', said[3]), dependent)
      redis.call('HSET', name, 'status', 'ready_to_enqueue')
      redis.call('ZADD', key('ready', said[3]), order.now, dependent)
      redis.call('SREM', key('job', order.id, 'dependents'), dependent)
    end
  end
end

local function record_failure(order)
  local results = key('results', order.id)
  local said = {'type', '2', 'worker_name', '', 'exc_string', order.error}
  if order.execution then
    table.insert(said, 'execution_id')
    table.insert(said, order.execution)
  end
  redis.call('XADD', results, 'MAXLEN', 10, '*', unpack(said))
  if order.kept_for then redis.call('EXPIRE', results, order.kept_for) else redis.call('PERSIST', results) end
end

local function strike_failure(order)
  local results = key('results', order.id)
  for _, entry in ipairs(redis.call('XREVRANGE', results, '+', '-', 'COUNT', 1)) do
    for place = 1, #entry[2], 2 do
      if entry[2][place] == 'exc_string' and entry[2][place + 1] == order.error then
        redis.call('XDEL', results, entry[1])
      end
    end
  end
end

local put = {
  queue = function(order)
    redis.call('SADD', key('queues'), key('queue', order.queue))
    redis.call(order.first and 'LPUSH' or 'RPUSH', key('queue', order.queue), order.id)
  end,
  intermediate = function(order) redis.call('RPUSH', key('queue', order.queue, 'intermediate'), order.id) end,
  started = function(order)
    for execution, score in pairs(order.gives_back) do
      redis.call('ZADD', key('wip', order.queue), score, order.id .. ':' .. execution)
    end
  end,
  scheduled = function(order)
    redis.call('SADD', key('queues'), key('queue', order.queue))
    redis.call('ZADD', key('scheduled', order.queue), order.to_be_due, order.id)
  end,
  deferred = function(order) redis.call('ZADD', key('deferred', order.queue), order.now, order.id) end,
  failed = function(order)
    redis.call('ZADD', key('failed', order.queue), order.forgotten_at, order.id)
    record_failure(order)
    let_dependents_go(order)
  end,
}

local function move(order)
  if not is_as_seen(order) or not executions_are_as_seen(order) then return 'changed' end
  if is_held(order) then return 'held' end
  if has_let_go(order) then return 'let go' end
  if not take[order.from](order) then return 'taken' end
  forget_executions(order)
  for name, value in pairs(order.set) do redis.call('HSET', key('job', order.id), name, value) end
  if order.from == 'failed' then strike_failure(order) end
  put[order.to](order)
  expire(order, order.kept_for)
  return 'moved'
end

local came_to = {}
for place, order in ipairs(cjson.decode(ARGV[1])) do came_to[place] = move(order) end
return came_to
"""
