import type { Lab } from '../../lab/lab.ts'

const seconds = 4

/** One connection of iperf3 for some seconds; `down` sends from the server to the client. */
export async function iperf(
  lab: Lab,
  host: string,
  port: number,
  direction: 'up' | 'down',
  where = 'client',
  forSeconds = seconds,
): Promise<{ gigabits: number; gigabytes: number }> {
  const flags = direction === 'down' ? ['-R'] : []
  const argv = ['iperf3', '-4', '-J', '-c', host, '-p', String(port), '-t', String(forSeconds), ...flags]
  const { stdout } = await lab.run(where, argv, { timeoutMs: (forSeconds + 20) * 1_000 })
  const { error, end } = JSON.parse(stdout) as {
    error?: string
    end?: { sum_received?: { bits_per_second: number; bytes: number } }
  }
  const received = end?.sum_received
  if (received === undefined) throw new Error(`iperf3 to ${host}:${port}: ${error}`)
  return { gigabits: received.bits_per_second / 1e9, gigabytes: received.bytes / 1e9 }
}

export interface Requests {
  count: number
  perSecond: number
  p50Ms: number
  p99Ms: number
}

/** HTTP requests by wrk for some seconds; not `keepAlive`: a new connection for each. */
export async function wrk(
  lab: Lab,
  host: string,
  port: number,
  connections: number,
  keepAlive = true,
): Promise<Requests> {
  const close = keepAlive ? [] : ['-H', 'Connection: close']
  const argv = ['wrk', '-t1', `-c${connections}`, `-d${seconds}s`, '--timeout', '5s', '--latency', ...close]
  const { stdout, stderr } = await lab.run('client', [...argv, `http://${host}:${port}/`], {
    timeoutMs: 30_000,
  })
  const perSecond = Number(/Requests\/sec:\s+([\d.]+)/.exec(stdout)?.[1])
  if (!(perSecond > 0)) throw new Error(`wrk to ${host}:${port}: ${stderr || stdout}`)
  const failed = /(Socket errors:.*|Non-2xx.*)/.exec(stdout)?.[1]
  // wrk counts the end of a connection that was asked to close as a read error where its answer came with it.
  if (failed !== undefined && !/connect 0, read \d+, write 0, timeout 0/.test(failed))
    throw new Error(`wrk to ${host}:${port}: ${failed}`)
  const count = Number(/(\d+) requests in/.exec(stdout)?.[1])
  return { count, perSecond, p50Ms: latency(stdout, 50), p99Ms: latency(stdout, 99) }
}

/** Waits until the service answers from the client: a new one has to reach the sidecars first. */
export async function untilServes(lab: Lab, host: string, port: number): Promise<void> {
  for (const until = Date.now() + 20_000; ; ) {
    const { stdout } = await lab.run('client', ['wrk', '-t1', '-c1', '-d1s', `http://${host}:${port}/`])
    if (Number(/Requests\/sec:\s+([\d.]+)/.exec(stdout)?.[1]) > 0) return
    if (Date.now() > until) throw new Error(`${host}:${port} does not answer: ${stdout}`)
  }
}

function latency(output: string, percent: number): number {
  const [, value, unit = ''] = new RegExp(`${percent}%\\s+([\\d.]+)(us|ms|s)`).exec(output) ?? []
  const ms = { us: 1e-3, ms: 1, s: 1e3 }[unit]
  if (ms === undefined) throw new Error(`wrk says no latency at ${percent} %: ${output}`)
  return Number(value) * ms
}
