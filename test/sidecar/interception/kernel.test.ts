import { release } from 'node:os'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { probeKernel } from '../../../sidecar/interception/probe.ts'
import { Pod } from './pod.ts'

const script = (name: string) => `${import.meta.dirname}/${name}`
const cidrs = '10.96.0.0/16,fd00:10:96::/112'

describe.each(['nft', 'legacy'])('init on the real kernel with iptables-%s', (backend) => {
  const pod = new Pod()
  const init = (...more: string[]) =>
    pod.init(
      'init',
      '--service-cidrs',
      cidrs,
      '--ignored-service-ips',
      '10.96.3.4,fd00:10:96::34',
      '--resolv-conf',
      pod.resolvConf,
      ...more,
    )
  let before = ''
  let installed = ''

  beforeAll(async () => {
    await pod.make()
    before = await pod.saved(backend)
  })
  afterAll(() => pod.remove())

  it('prints the rules and changes nothing with --dry-run', async () => {
    const { code, stdout } = await init('--backend', backend, '--dry-run')
    expect(code).toBe(0)
    for (const family of ['ipv4', 'ipv6']) expect(stdout).toContain(`# ${family.replace('ipv', 'IPv')}`)
    expect(stdout).toContain('-A EDGE-MESH -d 10.96.0.0/16 -p tcp')
    expect(await pod.saved(backend)).toBe(before)
  })

  it('writes, verifies and probes', async () => {
    const { code, stdout, stderr } = await init('--backend', backend)
    expect(stderr).toBe('')
    expect(code).toBe(0)
    expect(stdout).toMatch(
      `Wrote the EDGE-MESH rules (${backend}, IPv4 and IPv6); the kernel tells original destinations`,
    )
    installed = await pod.saved(backend)
    expect(installed).toContain('EDGE-MESH-TCP')
  })

  it('changes nothing when it runs again, and finds its back end by itself', async () => {
    const { code, stdout } = await init('--json')
    expect(code).toBe(0)
    expect(JSON.parse(stdout)).toMatchObject({ backend, probe: { outcome: 'works' } })
    expect(await pod.saved(backend)).toBe(installed)
  })

  it('redirects an app’s connections to services only, and their destinations are recovered', async () => {
    const interceptor = await pod.start('intercept.ts', [])
    const places = ['10.96.0.12', '2701', 'fd00:10:96::c', '2702', '10.96.3.4', '80', 'fd00:10:96::34', '80']
    const outside = ['10.9.0.53', '81', '10.97.0.1', '82', '127.0.0.1', '83', '10.9.0.1', '84']
    const { stdout } = await pod.run([process.execPath, script('connect.ts'), ...places, ...outside])
    const asSidecar = await pod.run(
      [process.execPath, script('connect.ts'), '10.96.0.12', '2703', 'fd00:10:96::c', '2704'],
      { uid: 1337 },
    )
    expect(await interceptor.stop()).toEqual(['10.96.0.12 2701', 'fd00:10:96::c 2702'])
    expect(stdout).toContain('10.96.0.12 connected')
    expect(stdout).toContain('10.9.0.53 ECONNREFUSED')
    expect(stdout).toContain('127.0.0.1 ECONNREFUSED')
    expect(stdout).toContain('10.9.0.1 ECONNREFUSED')
    expect(asSidecar.stdout).not.toContain(' connected')
  })

  it('has one source port serve several services within a minute, each at an address of its own', async () => {
    const interceptor = await pod.start('intercept.ts', ['arrivals'])
    const services = ['10.96.0.12', '10.96.0.13', '10.96.0.14']
    const places = [...services, ...services].flatMap((address) => [address, '2701'])
    const { stdout } = await pod.run([process.execPath, script('one-port.ts'), '34567', ...places])
    expect(stdout).toBe('')
    const arrivals = (await interceptor.stop()).map((line) => line.split(' '))
    expect(arrivals.map(([address]) => address)).toEqual([...services, ...services])
    const [first, second] = [arrivals.slice(0, 3), arrivals.slice(3)]
    expect(new Set(first.map(([, , at]) => at)).size).toBe(3)
    expect(second.map(([, , at]) => at)).toEqual(first.map(([, , at]) => at))
    for (const [, , at] of arrivals) expect(at).toMatch(/^127\./)
    // The kernel had no need to give it another port, which might be one that waits.
    expect(arrivals.map(([, , , from]) => from)).toEqual(arrivals.map(() => '34567'))
  })

  it('tells the app’s connections to a service from the sidecar’s to the same address, from the same source ports', async () => {
    const interceptor = await pod.start('intercept.ts', [])
    const dial = (port: string, uid: number) =>
      pod.run(
        [process.execPath, script('one-port.ts'), port, '10.96.0.15', '2701', 'fd00:10:96::f', '2701'],
        { uid },
      )
    const [first, second] = [await dial('34568', 1337), await dial('34568', 1000)] // what the first leaves must not matter
    const [third, fourth] = [await dial('34569', 1000), await dial('34569', 1337)]
    expect((await interceptor.stop()).toSorted()).toEqual(
      ['10.96.0.15 2701', '10.96.0.15 2701', 'fd00:10:96::f 2701', 'fd00:10:96::f 2701'].toSorted(),
    )
    for (const { stdout } of [second, third]) expect(stdout).toBe('')
    for (const { stdout } of [first, fourth]) expect(stdout).toMatch(/^10\.96\.0\.15 .+\nfd00:10:96::f .+\n$/)
  })

  it('lets the packets of the app’s connections past what keeps the sidecar’s untracked, but not the sidecar’s', async () => {
    const interceptor = await pod.start('intercept.ts', [])
    /** How many packets took each jump of table raw to a chain of ours, when `uid` has connected to a service. */
    const taken = async (uid: number) => {
      for (const program of ['iptables', 'ip6tables'])
        await pod.run([`${program}-${backend}`, '-t', 'raw', '-Z'])
      const places = ['10.96.0.12', '2701', 'fd00:10:96::c', '2702']
      await pod.run([process.execPath, script('connect.ts'), ...places], { uid })
      const saved = await Promise.all(
        ['iptables', 'ip6tables'].map((p) => pod.run([`${p}-${backend}-save`, '-c', '-t', 'raw'])),
      )
      const jumps = saved.flatMap(({ stdout }) => [
        ...stdout.matchAll(/^\[(\d+):\d+\] -A ([A-Z]+) .*-j EDGE-MESH-(?:OUT|IN)$/gm),
      ])
      return jumps.map(([, packets, from]) => `${from} ${packets === '0' ? 'none' : 'some'}`)
    }
    const ofApp = await taken(1000)
    const ofSidecar = await taken(1337)
    expect(await interceptor.stop()).toEqual(['10.96.0.12 2701', 'fd00:10:96::c 2702'])
    expect([...new Set(ofApp)].toSorted()).toEqual(['OUTPUT none', 'PREROUTING none'])
    expect(ofSidecar.filter((jump) => jump === 'OUTPUT some')).toHaveLength(2)
  })

  it('listens where nobody outside the pod can connect to', async () => {
    const interceptor = await pod.start('intercept.ts', [])
    const { stdout } = await pod.run([process.execPath, script('connect.ts'), '10.9.0.1', '40001'], {
      world: true,
    })
    expect(stdout).toBe('10.9.0.1 ECONNREFUSED\n')
    await interceptor.stop()
  })

  it('captures an ignored service from when the sidecar says that its label is gone, until it is back', async () => {
    const places = ['10.96.3.4', '80', 'fd00:10:96::34', '80']
    const captured = async (label: 'gone' | 'back', uid: number) => {
      const said = await pod.run(
        [process.execPath, script('relabel.ts'), label, '10.96.3.4', 'fd00:10:96::34'],
        { uid },
      )
      expect(said.stderr).toBe('')
      const interceptor = await pod.start('intercept.ts', [])
      await pod.run([process.execPath, script('connect.ts'), ...places])
      return interceptor.stop()
    }
    const both = ['10.96.3.4 80', 'fd00:10:96::34 80']
    expect(await captured('gone', 1000)).toEqual([]) // only the sidecar can
    expect(await captured('gone', 1337)).toEqual(both)
    await init() // init runs again
    expect(await captured('gone', 1337)).toEqual(both)
    expect(await captured('back', 1000)).toEqual(both)
    expect(await captured('back', 1337)).toEqual([])
    expect(await captured('back', 1337)).toEqual([])
  })

  it.each(['10.9.0.53', 'fd00:9::53'])(
    'tells the app’s queries to %s from the sidecar’s, thousands of times from the same source ports',
    async (server) => {
      const real = await pod.start('dns-place.ts', ['server', server, '53'], { world: true })
      const resolver = await pod.start('dns-place.ts', ['resolver', '127.0.0.1', '40053', '::1', '40053'])
      onTestFinished(async () => {
        await Promise.all([real.stop(), resolver.stop()])
      })
      const { stdout } = await pod.run([process.execPath, script('same-ports.ts'), server, '200'])
      expect(JSON.parse(stdout)).toEqual({ 'app by resolver': 2_000, 'sidecar by server': 2_000 })
    },
  )

  it('does not probe again where a sidecar listens already', async () => {
    const interceptor = await pod.start('intercept.ts', [])
    const { code, stdout } = await init()
    expect(code).toBe(0)
    expect(stdout).toContain('a sidecar already listens here')
    await interceptor.stop()
  })

  it('leaves nothing behind after cleanup', async () => {
    const { code, stdout } = await pod.init('cleanup')
    expect(code).toBe(0)
    expect(stdout).toContain(`Removed the rules (${backend} IPv4, ${backend} IPv6).`)
    expect(await pod.saved(backend)).toBe(before)
    expect((await pod.init('cleanup')).stdout).toBe('Nothing to remove.\n')
  })

  it('says what is missing without NET_ADMIN, and leaves no rules', async () => {
    const argv = [
      'setpriv',
      '--bounding-set=-net_admin,-net_raw',
      '--inh-caps=-net_admin,-net_raw',
      process.execPath,
      'sidecar/main.ts',
    ]
    const { code, stderr } = await pod.run([
      ...argv,
      'init',
      '--service-cidrs',
      cidrs,
      '--resolv-conf',
      pod.resolvConf,
    ])
    expect(code).toBe(1)
    expect(stderr).toMatch(
      /^Cannot write the EDGE-MESH rules: no iptables back end works here .*NET_ADMIN and NET_RAW\.\n$/,
    )
    expect(await pod.saved(backend)).toBe(before)
  })
})

describe('bad input', () => {
  const pod = new Pod()
  beforeAll(() => pod.make())
  afterAll(() => pod.remove())

  it.each([
    ['no CIDR', [], 1, 'no service CIDR is given'],
    ['a bad CIDR', ['--service-cidrs', '10.96.0.0/40'], 1, 'Cannot use "10.96.0.0/40" of --service-cidrs'],
    [
      'a missing resolv.conf',
      ['--service-cidrs', '10.96.0.0/16', '--resolv-conf', '/nowhere'],
      1,
      'Cannot read /nowhere',
    ],
    ['an unknown option', ['--nonsense'], 2, "unknown option '--nonsense'"],
    ['an unknown back end', ['--backend', 'bpf'], 2, 'Allowed choices are auto, nft, legacy'],
  ])('is refused clearly: %s', async (_title, args, exitCode, message) => {
    const { code, stderr } = await pod.init('init', ...args)
    expect(code).toBe(exitCode)
    expect(stderr).toContain(message)
  })
})

describe('a kernel that hangs', () => {
  it('is refused with one sentence, and the child that hangs is not waited for', async () => {
    // SIGTERM is ignored and nothing is ever said, as by a process that hangs in the kernel.
    const refusal = probeKernel(['sh', '-c', "echo asking; trap '' TERM; exec sleep 100"])
    await expect(refusal).rejects.toThrow(
      `Cannot inject this pod: getsockopt(SO_ORIGINAL_DST) did not answer within 3 s on kernel ${release()}. Upgrade the node's kernel to 4.19.12 or later, or label the pod sidecar.edgemesh.io/inject="false".`,
    )
  })

  it('is refused when the probe dies or answers something else', async () => {
    await expect(probeKernel(['sleep', '100'], { startMs: 100, answerMs: 3_000 })).rejects.toThrow(
      'could not be tried within 0.1 s',
    )
    await expect(probeKernel(['false'])).rejects.toThrow('does not work (the probe ended with exit code 1)')
    await expect(probeKernel(['echo', 'it answers 1.2.3.4 port 5'])).rejects.toThrow(
      '(it answers 1.2.3.4 port 5)',
    )
    await expect(probeKernel(['/no/such/program'])).rejects.toThrow('ENOENT')
  })
})
