"""blip_nb: the BLIP family in notebooks that are also the library. Names load when they are first used."""
__version__ = "0.1.0"

from importlib import import_module as _import

_names_of = {  # module -> the names that `blip_nb` offers from it
    'core': 'InputError pick_device pick_dtype seed_everything',
    'data.samples': 'DataSample',
    'data.text': 'BlipTokenizer',
    'data.video': 'read_video',
    'data.published': 'load_published',
    'data.tables': 'load_rows',
    'data.streams': 'ShardRows Stream',
    'nets.vision': 'BlipConfig BlipVisionModel',
    'nets.text': 'BlipTextModel BlipTextLMHeadModel',
    'nets.blip': 'BlipModel BlipForConditionalGeneration BlipForImageTextRetrieval BlipForQuestionAnswering',
    'nets.pretraining': 'BlipForPreTraining',
    'nets.nlvr': 'BlipForNLVR',
    'nets.grounding': 'BlipForGrounding',
    'nets.classification': 'BlipForClassification',
    'nets.eva': 'Blip2VisionModel',
    'nets.qformer': 'Blip2QFormerModel',
    'nets.blip2': 'Blip2Model Blip2ForConditionalGeneration',
    'nets.blip2_retrieval': 'Blip2ForImageTextRetrieval',
    'nets.flamingo': 'FlamingoForConditionalGeneration',
    'nets.checkpoints': 'training_state',
    'nets.families': 'from_checkpoint to_checkpoint convert',
    'nets.zoo': 'load list_models',
    'tasks.caption': 'BlipCaption',
    'tasks.pretrain': 'BlipPretrain',
    'tasks.retrieval': 'BlipRetrieval',
    'tasks.vqa': 'BlipVQA',
    'tasks.nlvr': 'BlipNLVR',
    'tasks.grounding': 'BlipGrounding',
    'tasks.classification': 'BlipClassification zero_shot',
    'tasks.blip2': 'Blip2Caption Blip2VQA',
    'tasks.blip2_retrieval': 'Blip2Retrieval',
    'tasks.blip2_pretrain': 'Blip2Pretrain',
    'tasks.flamingo': 'Flamingo',
    'tasks.features': 'extract_features match',
    'tasks.find': 'find index_pictures',
    'evaluation.answers': 'vqa_accuracy',
    'evaluation.recall': 'retrieval_scores',
    'evaluation.captions': 'caption_scores',
    'evaluation.search': 'build_index',
    'evaluation.index': 'open_index',
    'evaluation.runners': 'evaluate',
    'training.recipes': 'Recipe',
    'training.loop': 'fit',
    'training.one_pass': 'one_pass read_pass',
    'training.capfilt': 'capfilt',
}
_module_of = {name: module for module, names in _names_of.items() for name in names.split()}
_rooms = 'core data nets tasks evaluation training visual'.split()
__all__ = sorted(_module_of)

def __getattr__(name):
    if name in _module_of: value = getattr(_import(f'{__name__}.{_module_of[name]}'), name)
    elif name in _rooms: value = _import(f'{__name__}.{name}')
    else: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value

def __dir__(): return sorted({*globals(), *__all__, *_rooms})
