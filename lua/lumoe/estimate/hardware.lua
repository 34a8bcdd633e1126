--- Machines by name: peak arithmetic, memory and wires, each with where the figure is from.
--
-- Per device, per direction, in bytes, seconds and operations a second; `host` is for all devices of a host. They are
-- makers' peaks, not measurements of ours (those are `here`, estimate/here.lua). `efficiency`, the share of peak
-- arithmetic that the model's products reach, is an assumption: 0.5, as large Transformers get on these machines
-- (Narayanan et al. 2021, arXiv 2104.04473, table 1: 44 to 52 % on A100).
local GB, GiB, TFLOPS, us = 1e9, 2 ^ 30, 1e12, 1e-6
local function gigabits(n) return n * 1e9 / 8 end

local EFFICIENCY = 0.5

-- NCCL src/graph/tuning.cc, hwLat, ring, simple protocol: what its own model takes for NVLink and network.
local NVLINK_LATENCY, NETWORK_LATENCY = 3.4 * us, 9.6 * us

-- PCI Express base specification, 16 lanes, after encoding: generation 3, 4, 5. Sharing of a switch is not counted.
local PCIE = { [3] = 15.75 * GB, [4] = 31.5 * GB, [5] = 63 * GB }

local function ddr(sockets, channels, megatransfers) return sockets * channels * megatransfers * 8e6 end

local V100 = { -- V100 data sheet (SXM2, 32 GB): 125 TFLOPS on tensor cores are fp16, which here stands for bf16
  flops = { bf16 = 125 * TFLOPS, f32 = 15.7 * TFLOPS }, memory = 32 * GiB, bandwidth = 900 * GB,
  link = { bandwidth = 150 * GB, latency = NVLINK_LATENCY }, -- NVLink 300 GB/s, both directions
}
local A100 = { -- A100 data sheet (SXM4): bf16 dense, f32 outside the tensor cores
  flops = { bf16 = 312 * TFLOPS, f32 = 19.5 * TFLOPS },
  link = { bandwidth = 300 * GB, latency = NVLINK_LATENCY }, -- NVLink 600 GB/s, both directions
}
local H100 = { -- H100 data sheet (SXM5): 1,979 TFLOPS with sparsity, half of it dense
  flops = { bf16 = 989.4 * TFLOPS, f32 = 67 * TFLOPS }, memory = 80 * GiB, bandwidth = 3350 * GB,
  link = { bandwidth = 450 * GB, latency = NVLINK_LATENCY }, -- NVLink 900 GB/s, both directions
}

-- device, what differs from it, devices of a host, bits of its network, memory of the host and its bandwidth, PCIe
local function host(title, device, own, devices, network_gigabits, host_memory, host_bandwidth, pcie)
  local self = { title = title, devices = devices, efficiency = EFFICIENCY, flops = device.flops, link = device.link,
    memory = own.memory or device.memory, bandwidth = own.bandwidth or device.bandwidth,
    network = { bandwidth = gigabits(network_gigabits) / devices, latency = NETWORK_LATENCY },
    host = { memory = host_memory, bandwidth = host_bandwidth } }
  -- The second tier is the host's memory: the device's wire to it, or its share of the memory's rate.
  self.tier = { bandwidth = math.min(PCIE[pcie], host_bandwidth / devices), memory = host_memory / devices }
  return self
end

return {
  -- DGX-1 data sheet: 8 V100, 4 × 100 Gb/s InfiniBand, 512 GB of DDR4-2133; Xeon E5-2698 v4: 4 channels
  ['v100-dgx1'] = host('DGX-1, 8 × V100-32GB', V100, {}, 8, 400, 512 * GiB, ddr(2, 4, 2133), 3),
  -- DGX-2 data sheet: 16 V100, 8 × 100 Gb/s InfiniBand, 1.5 TB of DDR4-2666; Xeon Platinum 8168: 6 channels
  ['v100-dgx2'] = host('DGX-2, 16 × V100-32GB', V100, {}, 16, 800, 1536 * GiB, ddr(2, 6, 2666), 3),
  -- DGX A100 data sheet (320 GB): 8 × 200 Gb/s InfiniBand, 1 TB; A100 40GB: 1,555 GB/s; EPYC 7742: 8 × DDR4-3200
  ['a100-40'] = host('DGX A100, 8 × A100-40GB', A100, { memory = 40 * GiB, bandwidth = 1555 * GB }, 8, 1600,
    1024 * GiB, ddr(2, 8, 3200), 4),
  -- DGX A100 data sheet (640 GB): 8 × 200 Gb/s InfiniBand, 2 TB; A100 80GB: 2,039 GB/s
  ['a100-80'] = host('DGX A100, 8 × A100-80GB', A100, { memory = 80 * GiB, bandwidth = 2039 * GB }, 8, 1600,
    2048 * GiB, ddr(2, 8, 3200), 4),
  -- DGX H100 data sheet: 8 × 400 Gb/s InfiniBand, 2 TB; Xeon Platinum 8480C: 8 × DDR5-4800
  ['h100'] = host('DGX H100, 8 × H100-80GB', H100, {}, 8, 3200, 2048 * GiB, ddr(2, 8, 4800), 5),
}
