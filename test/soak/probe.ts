import { readdirSync, readFileSync } from 'node:fs'
import type { Lab } from '../lab/lab.ts'
import type { Sample } from './verdict.ts'

/** A process that is watched: the sidecar of a pod, or a replica of the server. */
export interface Part {
  name: string
  where: string
  adminPort: number
  kind: 'sidecar' | 'server'
}

/** The value of a metric without labels, or the sum over all labels; 0 where there is none. */
export function metricIn(text: string, name: string): number {
  const lines = text.split('\n').filter((l) => l.startsWith(`${name} `) || l.startsWith(`${name}{`))
  return lines.reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0)
}

/** Finished outbound connections by route. */
export function routesIn(text: string): Record<string, number> {
  const routes: Record<string, number> = {}
  for (const [, labels = '', count = ''] of text.matchAll(/^edgemesh_connections_total\{(.*)\} (\d+)$/gm)) {
    const route = /route="([^"]*)"/.exec(labels)?.[1] ?? ''
    if (labels.includes('direction="outbound"')) routes[route] = (routes[route] ?? 0) + Number(count)
  }
  return routes
}

/** What the kernel says of a process, in kB. */
export function memoryIn(rollup: string): { rssKb: number; anonymousKb: number } {
  const kb = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(rollup)?.[1])
  return { rssKb: kb('Rss'), anonymousKb: kb('Anonymous') }
}

/** A page of the admin port; by the shell, as a process of Node for each would be most of the load. */
export async function adminPage(lab: Lab, { where, adminPort }: Part, path: string): Promise<string> {
  const ask = `exec 3<>/dev/tcp/127.0.0.1/${adminPort} && printf 'GET ${path} HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3`
  const { code, stdout, stderr } = await lab.run(where, ['bash', '-c', ask], { timeoutMs: 15_000 })
  if (code !== 0) throw new Error(`Cannot ask ${where} for ${path}: ${stderr.trim()}`)
  return stdout.slice(stdout.indexOf('\r\n\r\n') + 4)
}

export async function sample(lab: Lab, part: Part, now: number): Promise<Sample> {
  const metrics = await adminPage(lab, part, '/metrics')
  const pid = lab.pidOf(part.name)
  const pump = metricIn(metrics, 'edgemesh_pump_connections')
  return {
    atMs: now,
    ...memoryIn(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8')),
    fds: readdirSync(`/proc/${pid}/fd`).length,
    pump,
    ...(part.kind === 'sidecar' ? await sidecarCounts(lab, part) : serverCounts(metrics)),
  }
}

async function sidecarCounts(lab: Lab, part: Part): Promise<Pick<Sample, 'sessions' | 'connections'>> {
  const { sessions, connections } = JSON.parse(await adminPage(lab, part, '/status'))
  return { sessions: sessions.direct + sessions.punched + sessions.relayed, connections }
}

function serverCounts(metrics: string): Pick<Sample, 'sessions' | 'connections'> {
  return {
    sessions: metricIn(metrics, 'edgemesh_control_channels'),
    connections: metricIn(metrics, 'edgemesh_relay_pairs') + metricIn(metrics, 'edgemesh_relay_forwarded'),
  }
}
