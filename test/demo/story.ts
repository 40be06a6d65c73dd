import { readFileSync } from 'node:fs'
import type { Lab } from '../lab/lab.ts'

export interface Step {
  from: string
  to: string
  /** What the app dialled: a service name or a clusterIP. */
  name: string
  clusterIP: string
  route: string
  /** The nodes on the way. */
  via: string[]
  dnsMs: number
  /** Until the far app was connected. */
  connectMs: number
  firstByteMs: number
  /** What the kernel said that the connection was meant for. */
  recovered: string
  endpoint: string
  greeting: string
  echoed: boolean
}

const telnetDeadlineMs = 10_000

/** One connection from the client pod: timed as an app would make it, then once more with a real telnet. */
export async function tell(lab: Lab, service: string, by: 'name' | 'clusterIP'): Promise<Step> {
  const clusterIP = lab.services.find((s) => s.name === service)?.clusterIPs[0] ?? ''
  const name = by === 'name' ? service : clusterIP
  const seen = accessLines(lab).length
  const { code, stdout, stderr } = await lab.run('client', lab.node('test/demo/measure.ts', name, '2701'))
  if (code !== 0) throw new Error(`The connection to ${name}:2701 failed: ${stderr.trim()}`)
  const { dnsMs, firstByteMs } = JSON.parse(stdout) as { dnsMs: number; firstByteMs: number }
  const line = await accessLine(lab, seen)
  const pod = lab.pods.find((p) => p.uid === line.podUid)
  const from = lab.pod('client')
  const relay = line.route === 'relayed' ? ['mkmaster1'] : []
  const telnet = await talk(lab, name)
  await accessLine(lab, seen + 1) // its own; the next step's must not be mistaken for it
  return {
    from: from.node,
    to: pod?.node ?? '',
    name,
    clusterIP,
    route: String(line.route),
    via: [from.node, ...relay, pod?.node ?? ''],
    dnsMs: round(dnsMs),
    connectMs: round(Number(line.connectMs)),
    firstByteMs: round(firstByteMs),
    recovered: String(line.destination),
    endpoint: String(line.endpoint),
    ...telnet,
  }
}

/** A real telnet: waits for the greeting, sends a line, and reads it back. */
async function talk(lab: Lab, host: string): Promise<{ greeting: string; echoed: boolean }> {
  const child = lab.spawn('client', ['telnet', '-4', host, '2701'])
  const sentence = 'is anybody out there?'
  const { promise, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(resolve, telnetDeadlineMs)
  let text = ''
  let sent = false
  child.stdout?.on('data', (chunk) => {
    text += chunk
    if (text.includes('Welcome') && !sent) {
      sent = true
      child.stdin?.write(`${sentence}\n`)
    }
    if (text.includes(sentence)) resolve()
  })
  child.once('close', () => resolve())
  await promise
  clearTimeout(timer)
  child.stdin?.end()
  child.kill()
  const greeting = text.split(/\r?\n/).find((line) => line.startsWith('Welcome')) ?? ''
  return { greeting, echoed: text.includes(sentence) }
}

interface LinesOf {
  pod: string
  /** Only those that went to this pod. */
  podUid?: string
}

function accessLines(lab: Lab, { pod, podUid }: LinesOf = { pod: 'client' }): Record<string, unknown>[] {
  const text = readFileSync(lab.logOf(pod), 'utf8')
  const lines = text.slice(0, text.lastIndexOf('\n')).split('\n') // the last line may be half written
  const outbound = lines.flatMap((line) =>
    line.includes('"direction":"outbound"') ? [JSON.parse(line)] : [],
  )
  return outbound.filter((line) => podUid === undefined || line.podUid === podUid)
}

/** Access line number `index`, as soon as it is written: at the end of its connection. */
export async function accessLine(lab: Lab, index: number, of?: LinesOf): Promise<Record<string, unknown>> {
  for (let i = 0; i < 200; i++) {
    const line = accessLines(lab, of)[index]
    if (line !== undefined) return line
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  throw new Error(`The sidecar of ${of?.pod ?? 'client'} wrote no access line.`)
}

function round(ms: number): number {
  return Math.round(ms * 10) / 10
}
