import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { withDeadline } from '../../sidecar/shared/lifecycle.ts'
import { closeCodes } from '../../sidecar/shared/wire.ts'
import { type Place, TestClient } from './client.ts'
import { createIssuer, type Issuer, issuer, pod, podManifest } from './harness.ts'

const root = join(import.meta.dirname, '..', '..')
const node = join(root, 'node_modules', '.bin', 'node')
const alice = pod('alice')
const running = new Set<ChildProcess>()
let folder: string
let ours: Issuer

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'edgemesh-main-'))
  ours = await createIssuer()
  await mkdir(join(folder, 'manifests'))
  await writeFile(join(folder, 'manifests', 'alice.json'), JSON.stringify(podManifest(alice)))
  await writeFile(join(folder, 'keys.json'), ours.jwks)
})
afterAll(async () => {
  for (const child of running) child.kill('SIGKILL')
  await rm(folder, { recursive: true })
})

const options = (): Record<string, string> => ({
  port: '0',
  'admin-port': '0',
  'state-dir': join(folder, 'state'),
  manifests: join(folder, 'manifests'),
  'token-keys': join(folder, 'keys.json'),
  'token-issuer': issuer,
})

interface Run {
  child: ChildProcess
  /** Resolves with the object of the line that says so; rejects when the process ends first. */
  said(message: string): Promise<Record<string, unknown>>
  exited: Promise<{ code: number | null; stderr: string }>
}

function start(given: Record<string, string>, env: Record<string, string> = {}): Run {
  const args = Object.entries(given).flatMap(([name, value]) => [`--${name}`, value])
  const child = spawn(node, ['server/main.ts', ...args], {
    cwd: root,
    env: { PATH: process.env.PATH, ...env },
  })
  running.add(child)
  let stderr = ''
  child.stderr.on('data', (chunk) => {
    stderr += chunk
  })
  const exited = once(child, 'close').then(([code]) => {
    running.delete(child)
    return { code: code as number | null, stderr }
  })
  const lines = createInterface({ input: child.stdout })
  const said = (message: string) => {
    const { promise, resolve, reject } = Promise.withResolvers<Record<string, unknown>>()
    lines.on('line', (line) => {
      const parsed = JSON.parse(line) as Record<string, unknown>
      if (parsed.msg === message) resolve(parsed)
    })
    exited.then(({ code }) => reject(new Error(`exit ${code} before "${message}": ${stderr}`)))
    return withDeadline(promise, 60_000, `see the line "${message}"`)
  }
  return { child, said, exited }
}

const pageOf = async (port: unknown, path: string) => {
  const response = await fetch(`http://127.0.0.1:${port}${path}`)
  return { status: response.status, body: await response.text() }
}

describe('the server process', () => {
  it.each(['SIGTERM', 'SIGINT'] as const)('serves until %s, and tells its clients', async (signal) => {
    const run = start(options())
    const { port, adminPort, services } = await run.said('listening')
    expect(services).toBe(0)
    expect(await pageOf(adminPort, '/healthz')).toEqual({ status: 200, body: 'ok\n' })
    expect(await pageOf(adminPort, '/readyz')).toEqual({ status: 200, body: 'ready\n' })
    const trustBundle = await readFile(join(folder, 'state', 'ca.crt'), 'utf8')
    expect((await stat(join(folder, 'state', 'ca.key'))).mode & 0o777).toBe(0o600)

    const place: Place = { port: Number(port), issuer: ours, authority: { trustBundle } }
    const client = await TestClient.join(place, alice)
    const { body } = await pageOf(adminPort, '/metrics')
    expect(body).toContain('edgemesh_pods_present 1\n')
    expect(body).toContain('edgemesh_certificates_issued_total 1\n')
    run.child.kill(signal)
    expect((await client.next('goingAway')).comeBackMs).toBeLessThan(600_000)
    expect(await client.ending()).toMatchObject({ close: closeCodes.goingAway, error: 'stopping' })
    expect(await run.exited).toEqual({ code: 0, stderr: '' })
  })

  it('takes its options from the environment too, and the command line goes first', async () => {
    const { port, ...others } = options()
    const run = start(others, {
      EDGEMESH_PORT: port ?? '',
      EDGEMESH_ADMIN_PORT: '1',
      EDGEMESH_LOG_LEVEL: 'debug',
    })
    await run.said('listening')
    run.child.kill('SIGTERM')
    expect(await run.exited).toMatchObject({ code: 0 })
  })

  const bad: [string, () => Record<string, string>, RegExp][] = [
    [
      'without the folder of its state',
      () => omit('state-dir'),
      /^error: required option '--state-dir <folder>'/,
    ],
    [
      'with a port that is none',
      () => ({ ...options(), port: '70000' }),
      /--port.+70000.+must be a port number/,
    ],
    [
      'with a time that is none',
      () => ({ ...options(), 'leaf-lifetime': '5' }),
      /--leaf-lifetime.+must be a time/,
    ],
    ['with a level that is none', () => ({ ...options(), 'log-level': 'loud' }), /--log-level.+loud/],
    [
      'with a trust domain that is none',
      () => ({ ...options(), 'trust-domain': 'A b' }),
      /--trust-domain.+domain name/,
    ],
    ['with an option that is none', () => ({ ...options(), prot: '1' }), /unknown option '--prot'/],
    [
      'with manifests that are not there',
      () => at('manifests'),
      /^Cannot read manifests: .+ is not a folder\./,
    ],
    ['with keys that are not there', () => at('token-keys'), /^Cannot read token keys: /],
    [
      'with a state that cannot be',
      () => ({ ...options(), 'state-dir': '/dev/null/x' }),
      /^Cannot use \/dev\/null\/x/,
    ],
  ]
  const omit = (name: string) => Object.fromEntries(Object.entries(options()).filter(([n]) => n !== name))
  const at = (name: string) => ({ ...options(), [name]: join(folder, 'nowhere') })

  it.each(bad)('%s exits with 1 and one clear line', async (_what, given, sentence) => {
    const { code, stderr } = await start(given()).exited
    const [first, ...more] = stderr.trim().split('\n')
    expect(first).toMatch(sentence)
    expect(more.join('')).toMatch(/^(\(Did you mean --port\?\))?(\(see --help\))?$/)
    expect(code).toBe(1)
  })

  it('names an environment variable that is bad', async () => {
    const { code, stderr } = await start(omit('port'), { EDGEMESH_PORT: 'web' }).exited
    expect(stderr).toMatch(/EDGEMESH_PORT.+must be a port number/)
    expect(code).toBe(1)
  })

  it('says so when a port is taken', async () => {
    const first = start(options())
    const { port } = await first.said('listening')
    const { code, stderr } = await start({ ...options(), port: String(port) }).exited
    expect(stderr).toMatch(new RegExp(`^Cannot listen on port ${port}: .*EADDRINUSE[^\n]*\n$`))
    expect(code).toBe(1)
    first.child.kill('SIGTERM')
    expect(await first.exited).toMatchObject({ code: 0 })
  })
})
