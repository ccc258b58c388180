//! The closed list of names that a pickle may mention. A name stands for itself: nothing is imported and nothing is called.

use shardwright_core::DType;

/// A name that a pickle may mention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Global {
    /// `collections.OrderedDict`, or another mapping.
    Mapping,
    /// `collections.defaultdict`, whose first argument is its default.
    DefaultDict,
    /// `builtins.set` and `frozenset`.
    Set,
    /// `builtins.list`, as a default.
    List,
    /// A path of `pathlib`.
    Path,
    /// `torch.Size`.
    Size,
    /// `torch.device`.
    Device,
    /// A dtype of torch.
    DType(DType),
    /// A typed storage, such as `torch.FloatStorage`.
    Storage(DType),
    /// `torch.storage.UntypedStorage`.
    UntypedStorage,
    /// `torch._utils._rebuild_tensor_v2`.
    RebuildTensor,
    /// `torch._utils._rebuild_tensor_v3`.
    RebuildTensorV3,
    /// `torch._utils._rebuild_parameter`.
    RebuildParameter,
    /// `torch._tensor._rebuild_from_type_v2`.
    RebuildFromType,
    /// `torch.Tensor` and `torch.nn.parameter.Parameter`.
    TensorClass,
    /// `torch.serialization._get_layout`.
    Layout,
    /// `torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING`.
    MemoryFormat,
    /// `Metadata` of torch's distributed checkpoints.
    Metadata,
    /// `TensorStorageMetadata`.
    TensorMetadata,
    /// `BytesStorageMetadata`.
    BytesMetadata,
    /// `TensorProperties`.
    TensorProperties,
    /// `ChunkStorageMetadata`.
    Chunk,
    /// `MetadataIndex`.
    MetadataIndex,
    /// `StorageMeta`.
    StorageMeta,
    /// `_StorageInfo`.
    StorageInfo,
    /// DeepSpeed's `ZeroStageEnum`.
    ZeroStage,
    /// DeepSpeed's loss scalers.
    LossScaler,
    /// DeepSpeed's `fragment_address`.
    FragmentAddress,
}

const DCP: &str = "torch.distributed.checkpoint.metadata";

impl Global {
    /// The global of that module and name, where it is one of the list.
    pub fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::Mapping,
            ("builtins" | "__builtin__", "dict") => Self::Mapping,
            ("collections", "defaultdict") => Self::DefaultDict,
            ("builtins" | "__builtin__", "set" | "frozenset") => Self::Set,
            ("builtins" | "__builtin__", "list") => Self::List,
            ("pathlib" | "pathlib._local", "PosixPath" | "PurePosixPath" | "Path" | "WindowsPath" | "PureWindowsPath") => Self::Path,
            ("torch", "Size") => Self::Size,
            ("torch", "device") => Self::Device,
            ("torch.storage", "UntypedStorage") | ("torch", "UntypedStorage") => Self::UntypedStorage,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTensorV3,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch._tensor", "_rebuild_from_type_v2") => Self::RebuildFromType,
            ("torch", "Tensor") | ("torch.nn.parameter", "Parameter") => Self::TensorClass,
            ("torch.serialization", "_get_layout") => Self::Layout,
            (DCP, "_MEM_FORMAT_ENCODING") => Self::MemoryFormat,
            (DCP, "Metadata") => Self::Metadata,
            (DCP, "TensorStorageMetadata") => Self::TensorMetadata,
            (DCP, "BytesStorageMetadata") => Self::BytesMetadata,
            (DCP, "TensorProperties") => Self::TensorProperties,
            (DCP, "ChunkStorageMetadata") => Self::Chunk,
            (DCP, "MetadataIndex") => Self::MetadataIndex,
            (DCP, "StorageMeta") => Self::StorageMeta,
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo") => Self::StorageInfo,
            ("deepspeed.runtime.zero.config", "ZeroStageEnum") => Self::ZeroStage,
            ("deepspeed.runtime.fp16.loss_scaler", "LossScaler" | "DynamicLossScaler") => Self::LossScaler,
            ("deepspeed.utils.tensor_fragment", "fragment_address") => Self::FragmentAddress,
            ("torch", name) => match (name.strip_suffix("Storage"), dtype(name)) {
                (Some(class), _) => Self::Storage(storage(class)?),
                (None, Some(dtype)) => Self::DType(dtype),
                _ => return None,
            },
            _ => return None,
        })
    }
}

fn dtype(name: &str) -> Option<DType> {
    DType::ALL.iter().copied().find(|d| d.torch_name() == name)
}

/// torch's storage classes, without the suffix `Storage`.
const STORAGES: &[(&str, DType)] = &[
    ("Float", DType::F32),
    ("BFloat16", DType::BF16),
    ("Half", DType::F16),
    ("Double", DType::F64),
    ("Long", DType::I64),
    ("Int", DType::I32),
    ("Short", DType::I16),
    ("Char", DType::I8),
    ("Byte", DType::U8),
    ("Bool", DType::Bool),
    ("ComplexFloat", DType::C64),
];

fn storage(class: &str) -> Option<DType> {
    STORAGES.iter().find(|(name, _)| *name == class).map(|(_, dtype)| *dtype)
}

/// The storage class of a dtype, such as `FloatStorage`; `None` for those that torch stores untyped.
pub fn storage_class(dtype: DType) -> Option<String> {
    STORAGES.iter().find(|(_, d)| *d == dtype).map(|(name, _)| format!("{name}Storage"))
}
